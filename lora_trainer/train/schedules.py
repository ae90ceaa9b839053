"""Course of the learning rate: a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["cosine", "constant", "linear"]


def rate_factor(kind: ScheduleKind, step: int, steps: int, warmup: int) -> float:
    """Factor on the peak rate for the 0-based `step` of `steps`, the first `warmup` of which rise from 0.

    The same values as diffusers' `get_scheduler("constant_with_warmup" | "linear" | "cosine")`.
    """
    if step < warmup:
        return step / warmup
    if kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    if kind == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
