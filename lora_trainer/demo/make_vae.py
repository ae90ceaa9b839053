"""First stage of the maker: the VAE, trained on pictures of both styles, because the LoRA draws through it."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# (diffusers annotates unions of which a caller knows the one, and tuples of one where there are several)

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from lora_trainer.demo import scenes
from lora_trainer.demo.nets import SCALE, new_vae
from lora_trainer.demo.pace import Pace, write


def _drawn(job: tuple[int, str, int]) -> tuple[np.ndarray, scenes.Scene]:
    seed, style, size = job
    rng = np.random.default_rng(seed)
    scene = scenes.random_scene(rng)
    return np.asarray(scenes.draw(scene, style, size, rng)), scene


def draw_many(count: int, style: str, seed: int, size: int = 128) -> tuple[Tensor, list[scenes.Scene]]:
    """`count` random scenes as bytes (N, 3, H, W) with what they show, drawn in two processes."""
    jobs = [(seed * 1_000_003 + i, style, size) for i in range(count)]
    # A fork starts at once, where a spawned process would first import torch; the children only draw.
    with get_context("fork" if "fork" in get_all_start_methods() else "spawn").Pool(2) as pool:
        drawn = pool.map(_drawn, jobs, chunksize=64)
    return torch.from_numpy(np.stack([p for p, _ in drawn])).permute(0, 3, 1, 2).contiguous(), [s for _, s in drawn]


def to_unit(pictures: Tensor) -> Tensor:
    """Bytes to floats in -1..1, same shape."""
    return pictures.float() / 127.5 - 1


@dataclass(frozen=True)
class VaeRecipe:
    """What the VAE's training is made of."""

    plain: int = 3000  # pictures
    neon: int = 1500  # pictures
    batch: int = 8  # pictures
    steps: int = 3100
    rate: float = 1e-3
    crop: int = 64  # pixels; most steps see pieces, which teach as much at a quarter of the price
    whole: float = 0.15  # share of the stage, at its end, on whole pictures of half the batch
    kl: float = 2e-4  # per latent number; keeps the latents smooth enough for a small UNet
    jitter: float = 0.1  # noise the decoder must bear beside the encoder's own: latents from a UNet are never exact
    edges: float = 0.6  # weight of the gradient difference, which keeps outlines sharp
    hue: float = 4.0  # weight of the colour difference; without it green and purple end as grey
    read: float = 2.0  # weight of the error of colours read straight from the latents


def _cropped(pictures: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """A random square of `side` pixels from each picture (B, 3, H, W)."""
    corners = torch.randint(pictures.shape[-1] - side + 1, (len(pictures), 2), generator=rng).tolist()
    return torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(pictures, corners, strict=True)])


def _varied(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """A batch (B, 3, H, W) in -1..1, mirrored half of the time and half of it in other colours.

    Skies and deserts alone would teach one axis of colour, from blue to orange, and leave green and purple grey.
    """
    if torch.rand((), generator=rng) < 0.5:
        pictures = pictures.flip(-1)
    some = len(pictures) // 2
    shuffled = pictures[:some, torch.randperm(3, generator=rng)]
    return torch.cat([shuffled, pictures[some:]])


def _hue(pictures: Tensor) -> Tensor:
    """Red against green and blue against both: (B, 2, H, W), 0 for every grey."""
    red, green, blue = pictures.unbind(1)
    return torch.stack([red - green, blue - (red + green) / 2], 1)


def _difference(made: Tensor, real: Tensor, recipe: VaeRecipe) -> Tensor:
    across = F.l1_loss(made.diff(dim=-1), real.diff(dim=-1)) + F.l1_loss(made.diff(dim=-2), real.diff(dim=-2))
    hue_made, hue_real = _hue(made), _hue(real)
    # Squares, so that a vivid shape that came out grey weighs more than many slightly wrong skies.
    hue = F.mse_loss(hue_made, hue_real) + F.mse_loss(F.avg_pool2d(hue_made, 8), F.avg_pool2d(hue_real, 8))
    return F.l1_loss(made, real) + F.mse_loss(made, real) + recipe.edges * across + recipe.hue * hue


def _pool(kept: Path, recipe: VaeRecipe, seed: int) -> Tensor:
    if not kept.exists():
        styles = (("plain", recipe.plain), ("neon", recipe.neon))
        write(torch.cat([draw_many(count, style, seed + 1 + i)[0] for i, (style, count) in enumerate(styles)]), kept)
    return torch.load(kept, weights_only=True)


def train_vae(folder: Path, device: torch.device, seed: int, minutes: float | None, recipe: VaeRecipe) -> AutoencoderKL:
    """Trains, or goes on training, the VAE kept in `folder`; returns it with its latents whitened."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    # Reads a cell's mean colour from its four numbers: a short way to tell the encoder what the latents must hold.
    vae, reader = new_vae().to(device), nn.Conv2d(4, 3, 1).to(device)
    both = [*vae.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(both, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    pace, kept = Pace(recipe.steps, recipe.rate, minutes), folder / "vae.pt"
    if kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        pace.resume(state["pace"])
        rng.set_state(state["rng"].cpu())
    if pace.progress < 1:
        pictures = _pool(folder / "pool.pt", recipe, seed)

        def keep() -> None:
            write(
                {
                    "vae": vae.state_dict(),
                    "reader": reader.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "pace": pace.state(),
                    "rng": rng.get_state(),
                },
                kept,
            )

        while pace.tick(optimizer):
            whole = pace.progress > 1 - recipe.whole
            chosen = torch.randint(len(pictures), (recipe.batch // 2 if whole else recipe.batch,), generator=rng)
            seen = pictures[chosen] if whole else _cropped(pictures[chosen], recipe.crop, rng)
            real = _varied(to_unit(seen), rng).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                moments = vae.encode(real).latent_dist
                noise = torch.randn(moments.mean.shape, generator=rng).to(device)
                z = moments.mean + (moments.std + recipe.jitter) * noise
                made = vae.decode(z).sample
            read = F.mse_loss(reader(z.float()), F.avg_pool2d(real, 8))
            loss = _difference(made.float(), real, recipe) + recipe.read * read
            loss = loss + recipe.kl * moments.kl().mean() / z[0].numel()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if pace.step % 50 == 0:
                print(f"vae step {pace.step} of {pace.steps} loss {loss.item():.4f} read {read.item():.4f}", flush=True)
            if pace.step % 200 == 0:
                keep()
        keep()
    sample = to_unit(draw_many(256, "plain", seed + 3)[0]).to(device)
    whiten(vae, torch.cat([latents(vae, part) for part in sample.split(16)]))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def latents(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Mean latents (B, 4, H/8, W/8) of pictures (B, 3, H, W) in -1..1, before `SCALE`."""
    return vae.encode(pictures).latent_dist.mean


@torch.no_grad()
def whiten(vae: AutoencoderKL, z: Tensor) -> None:
    """Folds each latent channel's mean and deviation on `z` (N, 4, h, w) into the 1x1 convolutions around it.

    Stable Diffusion's constant then gives the UNet latents of unit deviation, as its noise schedule expects.
    """
    mean = z.mean(dim=(0, 2, 3))
    gain = z.std(dim=(0, 2, 3)) * SCALE
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias.add_(out.weight[:, :, 0, 0] @ mean)
    out.weight.mul_(gain[None, :, None, None])
    into.bias[:4].sub_(mean).div_(gain)
    into.weight[:4].div_(gain[:, None, None, None])
    into.bias[4:].sub_(2 * gain.log())  # the second half are log variances
