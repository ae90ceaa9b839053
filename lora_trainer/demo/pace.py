"""How long a stage of the maker runs and how its learning rate moves; keeps its work across a stop."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Pace:
    """Counts a stage's steps. It ends after `steps`, or after `minutes` where those are given and come first.

    With `minutes` the learning rate follows the clock, and two runs differ; without, the same seed gives the same base.
    """

    steps: int
    peak: float  # learning rate
    minutes: float | None = None
    warmup: int = 100  # steps
    step: int = 0
    spent: float = 0.0  # seconds, over all sessions
    _since: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> float:
        """0 at the start, 1 when the stage is over."""
        done = self.step / self.steps
        return done if self.minutes is None else max(done, self.seconds / (60 * self.minutes))

    @property
    def seconds(self) -> float:
        """Seconds of work so far."""
        return self.spent + time.monotonic() - self._since

    @property
    def rate(self) -> float:
        """The learning rate now: linear warm-up, then a half cosine to a hundredth of the peak."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.progress, 1.0)))
        return self.peak * min(1.0, (self.step + 1) / self.warmup) * max(cosine, 0.01)

    def tick(self, optimizer: torch.optim.Optimizer) -> bool:
        """Sets the learning rate of the coming step; False when there is none."""
        if self.progress >= 1:
            return False
        for group in optimizer.param_groups:
            group["lr"] = self.rate * group.get("factor", 1.0)
        self.step += 1
        return True

    def state(self) -> dict[str, float]:
        """What a later session needs to go on."""
        return {"step": self.step, "spent": self.seconds}

    def resume(self, state: dict[str, float]) -> None:
        """Goes on where `state` was taken."""
        self.step, self.spent, self._since = int(state["step"]), state["spent"], time.monotonic()


def write(state: object, path: Path) -> None:
    """Saves under another name and moves, so that a stop leaves the older file whole."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
