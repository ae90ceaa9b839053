"""How much of the image is left at each timestep."""

from __future__ import annotations

import torch
from torch import Tensor

TIMESTEPS = 1000
# Stability's v1-inference.yaml, v2-inference.yaml and sd_xl_base.yaml: linear_start and linear_end, between which the
# square roots of the betas are spaced evenly (ldm, make_beta_schedule "linear"; diffusers calls it "scaled_linear").
BETA_START, BETA_END = 0.00085, 0.012


def alphas_cumprod(*, zero_terminal_snr: bool = False) -> Tensor:
    """The cumulated products of 1 - beta, (1000,) float32, computed in float64 as ldm does.

    With `zero_terminal_snr` shifted and stretched so that the last is 0: Lin et al. 2023 (arXiv 2305.08891),
    algorithm 1.
    """
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        roots = alphas.sqrt()
        first, last = roots[0], roots[-1]
        alphas = ((roots - last) * first / (first - last)) ** 2
    return alphas.to(torch.float32)
