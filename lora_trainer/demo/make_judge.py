"""Third stage of the maker: the judge of generated pictures, trained and tested on drawn ones."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lora_trainer.demo.make_vae import draw_many, to_unit
from lora_trainer.demo.measure import SIDE, Judge, questions
from lora_trainer.demo.pace import Pace


def _examples(count: int, style: str, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    pictures, shown = draw_many(count, style, seed, size=SIDE)
    return pictures, {n: torch.tensor([a.index(getattr(s, n)) for s in shown]) for n, a in questions().items()}


def _worn(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Blurred, noisy and tinted pictures (B, 3, H, W): what a small VAE does to them must not change the answer."""
    side = int(torch.randint(SIDE // 3, SIDE + 1, (), generator=rng))
    soft = F.interpolate(F.interpolate(pictures, size=side, mode="area"), size=pictures.shape[-1], mode="bilinear")
    gain = 1 + 0.12 * torch.randn(len(pictures), 3, 1, 1, generator=rng)
    lift = 0.06 * torch.randn(len(pictures), 3, 1, 1, generator=rng)
    return soft * gain + lift + 0.06 * torch.randn(soft.shape, generator=rng)


@torch.no_grad()
def accuracy(judge: Judge, pictures: Tensor, answers: dict[str, Tensor]) -> dict[str, float]:
    """Share of right answers to each question for bytes (N, 3, 64, 64)."""
    scores = judge(to_unit(pictures))
    return {name: float((scores[name].argmax(1) == right).float().mean()) for name, right in answers.items()}


def train_judge(path: Path, seed: int, pictures: int = 6000, steps: int = 1500, batch: int = 48) -> dict[str, float]:
    """Trains on `pictures` plain scenes and a third as many neon ones; writes fp16 weights.

    Returns its accuracy on plain scenes that it has not seen.
    """
    torch.manual_seed(seed + 20)
    rng = torch.Generator().manual_seed(seed + 20)
    plain, neon = _examples(pictures, "plain", seed + 21), _examples(pictures // 3, "neon", seed + 22)
    drawn, right = torch.cat([plain[0], neon[0]]), {n: torch.cat([plain[1][n], neon[1][n]]) for n in plain[1]}
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    pace = Pace(steps, 2e-3)
    while pace.tick(optimizer):
        chosen = torch.randint(len(drawn), (batch,), generator=rng)
        scores = judge(_worn(to_unit(drawn[chosen]), rng))
        loss = torch.stack([F.cross_entropy(scores[n], right[n][chosen]) for n in scores]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if pace.step % 100 == 0:
            print(f"judge step {pace.step} loss {loss.item():.3f}", flush=True)
    judge.half().float()  # what is written is what is tested
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, path)
    return accuracy(judge.eval(), *_examples(1000, "plain", seed + 23))
