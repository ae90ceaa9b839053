"""What a step came to, told when it is known: on a CUDA device a step later, so that nobody waits for the device."""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from lora_trainer.contracts import Event, Skipped, Stepped
from lora_trainer.train.memory import peak_memory


@dataclass(frozen=True)
class Numbers:
    """Loss and gradient norm of one step, on their way from the device."""

    step: int  # steps done with it
    steps: int
    rates: Mapping[str, float]
    began: float  # time.perf_counter()
    device: torch.device
    values: Tensor  # (2,) on the CPU; not to be looked at before `there`
    there: torch.cuda.Event | None  # None: they are there

    def read(self, since: float) -> Stepped | Skipped:
        """Wait for them; the step's seconds are those since it began or, if later, since `since`."""
        if self.there:
            self.there.synchronize()
        loss, norm = cast("list[float]", self.values.tolist())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return Skipped(self.step, self.steps, loss, in_a_row=0)
        seconds = time.perf_counter() - max(self.began, since)
        return Stepped(self.step, self.steps, loss, self.rates, norm, seconds, peak_memory(self.device))


def on_their_way(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values on the CPU, and when they will be there; from CUDA into pinned memory, which waits for nothing."""
    copy = values.to("cpu", non_blocking=True)
    if not values.is_cuda:
        return copy, None
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(values.device))
    return copy, there


@dataclass
class Reading:
    """Tells steps in their order, the last one perhaps later; counts those that were not finite."""

    curable: Callable[[], bool]  # whether a step that was not finite may be the loss scale's doing
    stepped: Callable[[float], None]  # learns each loss
    skipped: int = 0  # not finite and not curable, in a row
    _waiting: list[Numbers] = field(default_factory=list[Numbers])
    _last: float = 0.0

    def take(self, result: Numbers | Stepped | Skipped, *, now: bool) -> Generator[Event, None, None]:
        """One step more; `now`: something is to be done with what it came to."""
        if not isinstance(result, Numbers):
            yield self._told(result)
            return
        self._waiting.append(result)
        while len(self._waiting) > (0 if now else 1):
            yield self._next()

    def finish(self) -> Generator[Event, None, None]:
        """Tell what is still to be told."""
        while self._waiting:
            yield self._next()

    def _next(self) -> Event:
        result = self._waiting.pop(0).read(self._last)
        self._last = time.perf_counter()
        return self._told(result)

    def _told(self, result: Stepped | Skipped) -> Event:
        if isinstance(result, Skipped):
            self.skipped += not (math.isfinite(result.loss) and self.curable())
            return replace(result, in_a_row=self.skipped)
        self.skipped = 0
        self.stepped(result.loss)
        return result
