"""A network's weights as named tensors: how the names are built, and what a module's three tensors mean together.

Names are "<part>.<canonical module path>.lora_down.weight" (r, in[, kh, kw]), "....lora_up.weight" (out, r[, 1, 1])
and "....alpha" (). The change of the module's weight is up @ down alpha / r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_trainer.contracts import NetworkState

DOWN, UP, ALPHA, DORA = "lora_down.weight", "lora_up.weight", "alpha", "dora_scale"


class ModuleWeights(NamedTuple):
    """What a LoRA holds for one module."""

    down: Tensor  # (r, in[, kh, kw])
    up: Tensor  # (out, r[, 1, 1])
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """The change of the module's weight (out, in[, kh, kw]), float32; Hu et al. 2021, eq. 3."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (product * self.scale).reshape(self.up.shape[0], *self.down.shape[1:])

    def norm(self) -> float:
        """Frobenius norm of `delta`, without making it: its square is the trace of (up' up)(down down'), r by r."""
        down, up = self.down.double().flatten(1), self.up.double().flatten(1)
        return abs(self.scale) * float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())


def modules_of(state: Mapping[str, Tensor]) -> dict[str, ModuleWeights]:
    """The modules of a state by "<part>.<path>", in the order of their down weights; KeyError if one is incomplete."""
    names = [key.removesuffix(f".{DOWN}") for key in state if key.endswith(f".{DOWN}")]
    return {
        name: ModuleWeights(state[f"{name}.{DOWN}"], state[f"{name}.{UP}"], float(state[f"{name}.{ALPHA}"]))
        for name in names
    }


def as_state(modules: Mapping[str, ModuleWeights]) -> NetworkState:
    """The reverse of `modules_of`."""
    state: NetworkState = {}
    for name, weights in modules.items():
        state[f"{name}.{DOWN}"] = weights.down
        state[f"{name}.{UP}"] = weights.up
        state[f"{name}.{ALPHA}"] = torch.tensor(weights.alpha, dtype=torch.float32)
    return state


def draw_down(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """First weights of a down projection (r, in[, kh, kw]), float32 on the CPU.

    He et al. 2015 (arXiv 1502.01852), eq. 14 with a leak of sqrt(5), as kohya's scripts and peft have it: uniform
    within sqrt(6 / ((1 + 5) fan_in)) = 1 / sqrt(fan_in).
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(tuple(shape), dtype=torch.float32).uniform_(-bound, bound, generator=generator)
