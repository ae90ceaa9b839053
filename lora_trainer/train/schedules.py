"""Course of the learning rate: a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["cosine", "constant", "linear", "cosine_with_restarts", "polynomial", "rex"]


@dataclass(frozen=True)
class Schedule:
    """A course over `steps` steps, the first `warmup` of which rise from 0.

    The same values as diffusers' `get_scheduler` for the names that it knows ("constant" there with warm-up, the
    polynomial one with an end of 0). "rex" is the profile of Chen et al. 2021 (arXiv 2107.04197, section 3): with z
    the share of steps left, z / (1/2 + z/2), which holds the rate high for long and drops it late.
    """

    kind: ScheduleKind
    steps: int
    warmup: int
    cycles: int = 1  # of "cosine_with_restarts"
    power: float = 1.0  # of "polynomial"; 1 is linear

    def factor(self, step: int) -> float:
        """Factor on the peak rate for the 0-based `step`."""
        if step < self.warmup:
            return step / self.warmup
        if self.kind == "constant":
            return 1.0
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = max(0.0, 1.0 - progress)
        if self.kind == "linear":
            return left
        if self.kind == "polynomial":
            return left**self.power
        if self.kind == "rex":
            return left / (0.5 + 0.5 * left)
        if self.kind == "cosine_with_restarts":
            if progress >= 1:
                return 0.0
            progress = (self.cycles * progress) % 1.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
