"""Second stage of the maker: text encoder and UNet, trained together by the diffusion loss on plain scenes only."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# (diffusers annotates unions of which a caller knows the one, and tuples of one where there are several)

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lora_trainer.demo import scenes
from lora_trainer.demo.make_vae import draw_many, latents, to_unit
from lora_trainer.demo.nets import SCALE, new_scheduler, new_text_encoder, new_unet
from lora_trainer.demo.pace import Pace, write
from lora_trainer.demo.words import clip_tokenizer


@dataclass(frozen=True)
class UnetRecipe:
    """What the UNet's training is made of."""

    pictures: int = 6144
    batch: int = 16  # pictures
    steps: int = 4600
    rate: float = 9e-4
    dropout: float = 0.1  # share of captions left empty, which classifier-free guidance needs
    gamma: float = 5.0  # Hang et al. 2023, Min-SNR weighting, eq. 9
    ema: float = 0.998  # share of the average kept at each step


def encode_scenes(vae: AutoencoderKL, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scaled latents (N, 4, 16, 16) in fp16 of `count` plain scenes, and each scene's number in `every_scene` (N,)."""
    device, number = next(vae.parameters()).device, {s: i for i, s in enumerate(scenes.every_scene())}
    z, which = [], []
    for start in range(0, count, 2048):
        pictures, shown = draw_many(min(2048, count - start), "plain", seed + 100 + start)
        with torch.autocast(device.type, torch.bfloat16):
            z += [(latents(vae, to_unit(p).to(device)) * SCALE).half().cpu() for p in pictures.split(32)]
        which += [number[s] for s in shown]
        print(f"encoded {start + len(pictures)} of {count} pictures", flush=True)
    return torch.cat(z), torch.tensor(which)


def caption_ids() -> Tensor:
    """Token ids of every scene in every phrasing, (scenes, PHRASINGS + 1, 77); the last phrasing is no caption."""
    tokenize = clip_tokenizer()
    return torch.stack(
        [tokenize([*(scenes.caption(s, i) for i in range(scenes.PHRASINGS)), ""]) for s in scenes.every_scene()]
    )


def _phrasing(count: int, dropout: float, rng: torch.Generator) -> Tensor:
    """Which phrasing each of `count` captions takes; those that name everything are the more frequent."""
    odds = torch.tensor([0.25, 0.12, 0.13, 0.2, 0.08, 0.08, 0.14]) * (1 - dropout)
    return torch.multinomial(torch.cat([odds, torch.tensor([dropout])]), count, replacement=True, generator=rng)


def min_snr(alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Weight of each of the 1000 steps for noise prediction: min(SNR, gamma) / SNR."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)


class Pair(nn.Module):
    """Text encoder and UNet as one module, because they are trained, averaged and kept together."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.unet = new_text_encoder(), new_unet()

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """The noise (B, 4, h, w) seen in latents x (B, 4, h, w) at steps t (B,) for captions ids (B, 77)."""
        return self.unet(x, t, self.text(ids)[0]).sample


def train_unet(
    folder: Path,
    vae: AutoencoderKL,
    seed: int,
    minutes: float | None,
    recipe: UnetRecipe,
    look: Callable[[Pair, int], None],
) -> Pair:
    """Trains, or goes on training, the pair kept in `folder`; returns its average. `look` is called now and then."""
    device = next(vae.parameters()).device
    z, which = _encoded(folder, vae, recipe.pictures, seed)
    torch.manual_seed(seed + 10)
    rng = torch.Generator().manual_seed(seed + 10)
    pair = Pair().to(device)
    average = copy.deepcopy(pair).requires_grad_(False)
    optimizer = torch.optim.AdamW(pair.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    pace, kept = Pace(recipe.steps, recipe.rate, minutes), folder / "unet.pt"
    if kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        pair.load_state_dict(state["pair"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        pace.resume(state["pace"])
        rng.set_state(state["rng"].cpu())
    ids, levels = caption_ids(), new_scheduler().alphas_cumprod
    weights = min_snr(levels, recipe.gamma)

    def keep() -> None:
        write(
            {
                "pair": pair.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "pace": pace.state(),
                "rng": rng.get_state(),
            },
            kept,
        )

    running = 0.0
    while pace.tick(optimizer):
        chosen = torch.randint(len(z), (recipe.batch,), generator=rng)
        t = torch.randint(len(levels), (recipe.batch,), generator=rng)
        noise = torch.randn(recipe.batch, *z.shape[1:], generator=rng)
        level = levels[t][:, None, None, None]
        x = level.sqrt() * z[chosen].float() + (1 - level).sqrt() * noise
        words = ids[which[chosen], _phrasing(recipe.batch, recipe.dropout, rng)]
        guess = pair(x.to(device).to(memory_format=torch.channels_last), t.to(device), words.to(device))
        loss = ((guess - noise.to(device)).square().mean(dim=(1, 2, 3)) * weights[t].to(device)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _follow(average, pair, min(recipe.ema, (1 + pace.step) / (10 + pace.step)))
        running += loss.item()
        if pace.step % 50 == 0:
            print(f"unet step {pace.step} loss {running / 50:.4f} progress {pace.progress:.3f}", flush=True)
            running = 0.0
        if pace.step % 500 == 0:
            keep()
            look(average, pace.step)
    keep()
    look(average, pace.step)
    return average


def _encoded(folder: Path, vae: AutoencoderKL, count: int, seed: int) -> tuple[Tensor, Tensor]:
    path = folder / "latents.pt"
    if not path.exists():
        write(encode_scenes(vae, count, seed), path)
    return torch.load(path, weights_only=True)
