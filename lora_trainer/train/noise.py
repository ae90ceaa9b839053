"""What is drawn for a batch: a timestep and noise for each sample, keyed by its position in the stream.

Every kind of draw has a generator of its own on the CPU, so that turning one option on does not change what another
draws, and a sample's noise hangs neither on its neighbours nor on the device.
"""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lora_trainer.config.options import ObjectiveConfig
from lora_trainer.config.seeds import sample_seed


class Drawn(NamedTuple):
    """The chance of one batch, on the CPU."""

    timesteps: Tensor  # (B,) whole numbers
    noise: Tensor  # (B, 4, h, w): what the UNet is asked for
    shown: Tensor  # (B, 4, h, w): what its input is mixed with; the same, unless the input is perturbed


def draw(
    objective: ObjectiveConfig, seed: int, positions: Sequence[int], shape: Sequence[int], *, count: int, offset: float
) -> Drawn:
    """Timesteps below `count` and noise of `shape` (4, h, w) for the samples at these positions.

    `offset` shifts the noise's mean per channel by a normal draw of this width (Guttenberg 2023, "Diffusion with
    Offset Noise", crosslabs.org).
    """
    timesteps: list[Tensor] = []
    noises: list[Tensor] = []
    shown: list[Tensor] = []
    generator = torch.Generator("cpu")
    span = (objective.min_timestep, min(objective.max_timestep, count))
    for position in positions:
        generator.manual_seed(sample_seed(seed, position, "noise"))
        uniform = torch.randint(*span, (1,), generator=generator)
        noise = torch.randn(tuple(shape), generator=generator)
        if offset > 0:
            noise = noise + offset * torch.randn((noise.shape[0], 1, 1), generator=generator)
        if objective.pyramid_noise:
            generator.manual_seed(sample_seed(seed, position, "pyramid"))
            noise = pyramid(noise, objective.pyramid_noise, objective.pyramid_discount, generator)
        noises.append(noise)
        if objective.input_perturbation > 0:
            generator.manual_seed(sample_seed(seed, position, "perturbation"))
            noise = noise + objective.input_perturbation * torch.randn(noise.shape, generator=generator)
        shown.append(noise)
        if objective.timesteps != "uniform":
            generator.manual_seed(sample_seed(seed, position, "timestep"))
            uniform = leaning_timestep(objective, span, generator)
        timesteps.append(uniform)
    stacked = torch.stack(noises)
    return Drawn(torch.cat(timesteps), stacked, torch.stack(shown) if objective.input_perturbation > 0 else stacked)


def leaning_timestep(objective: ObjectiveConfig, span: tuple[int, int], generator: torch.Generator) -> Tensor:
    """One timestep (1,) of span[0] <= t < span[1], drawn unevenly: t = low + floor(s (high - low)) with s in 0..1.

    logit_normal: s = sigmoid(mean + std n), n normal (Esser et al. 2024, arXiv 2403.03206, equation 19).
    high_noise: s = 1 - u^power, u uniform, which is Beta(1, 1 / power); the cubic draw of Mou et al. 2023 (arXiv
    2302.08453, section 3.4) at power 3. low_noise is its mirror image, u^power or Beta(1 / power, 1).
    """
    low, high = span
    if objective.timesteps == "logit_normal":
        share = torch.sigmoid(objective.logit_mean + objective.logit_std * torch.randn(1, generator=generator))
    else:
        share = torch.rand(1, generator=generator) ** objective.timestep_power
        if objective.timesteps == "high_noise":
            share = 1 - share
    return (low + share * (high - low)).long().clamp(max=high - 1)


def pyramid(noise: Tensor, layers: int, discount: float, generator: torch.Generator) -> Tensor:
    """Noise (4, h, w) with coarser and coarser noise added, brought back to a standard deviation of 1.

    Layer i is drawn at 1 / r^i of the size, r between 2 and 4 anew each time, enlarged, and weighs discount^i; the
    last is a single cell. Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training" (wandb.ai), as in
    sd-scripts (library/custom_train_functions.py, pyramid_noise_like); there the deviation is the batch's, here each
    sample's own, so that it does not hang on its neighbours.
    """
    channels, height, width = noise.shape
    for layer in range(layers):
        ratio = (2 + 2 * torch.rand(1, generator=generator).item()) ** layer
        size = (max(1, math.floor(height / ratio)), max(1, math.floor(width / ratio)))
        coarse = torch.randn((1, channels, *size), generator=generator)
        enlarged = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        noise = noise + enlarged[0] * discount**layer
        if 1 in size:
            break
    return noise / noise.std()
