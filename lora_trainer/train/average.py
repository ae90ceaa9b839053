"""A moving average of the trained weights, which wavers less than they do from step to step."""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decay_at(step: int, decay: float) -> float:
    """How much of the average stays at the 0-based `step`: min(decay, (1 + n) / (10 + n)), and nothing at the first.

    The warm-up of diffusers' EMAModel (training_utils.py, get_decay), so that the first weights are soon forgotten;
    a function of the step, so that a resumed run needs no count.
    """
    return 0.0 if step == 0 else min(decay, (1 + step) / (10 + step))


class Average:
    """The exponential moving average of some parameters, float32 on their device."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.values = [p.detach().clone() for p in parameters]

    @property
    def bytes(self) -> int:
        """Memory that the copy takes."""
        return sum(value.numel() * value.element_size() for value in self.values)

    def take(self, step: int) -> None:
        """Move towards the parameters as they are after the 0-based `step`."""
        share = 1.0 - decay_at(step, self._decay)
        with torch.no_grad():
            for value, parameter in zip(self.values, self._parameters, strict=True):
                value.lerp_(parameter, share)

    def load(self, values: Sequence[Tensor] | None) -> None:
        """Go on from these; None begins anew with the parameters as they are."""
        with torch.no_grad():
            for value, found in zip(self.values, self._parameters if values is None else values, strict=True):
                value.copy_(found)
