"""What is done when memory does not suffice: one measure after the other, the cheapest first, until it does."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch

from lora_trainer.contracts import Event, Told
from lora_trainer.train.memory import let_go

CHECKPOINTING, HALVED = "checkpointing", "halved"  # names of measures that others ask for

Result = TypeVar("Result")
Settings = Mapping[str, object]  # by dotted path, as they would stand in a YAML file


class Rung(NamedTuple):
    """One measure. What it changes is how a step is computed, never what it learns from."""

    name: str  # by which a saved state remembers it
    take: Callable[[], str]  # does it, and says what from now on is so; empty where there is nothing (more) to do
    instead: Callable[[], Settings]  # what has the same effect from the start; empty where no setting has


@dataclass
class Ladder:
    """The measures of one run in their order, and those that were taken."""

    device: torch.device
    rungs: Sequence[Rung]
    room: Callable[[], str] = lambda: ""  # frees what others can spare, and says what; tried once, before any measure
    said: list[Told] = field(default_factory=list[Told])  # by what may not yield it itself
    taken: list[str] = field(default_factory=list[str])
    told: list[str] = field(default_factory=list[str])  # what the measures are, in words
    _settings: dict[str, object] = field(default_factory=dict[str, object])
    _made_room: bool = False

    def climb(self) -> str:
        """Take the next measure and say what it is; empty at the end of the ladder."""
        if not self._made_room:
            self._made_room = True
            if freed := self.room():
                return freed
        for rung in self.rungs:
            if said := self._take(rung):
                return said
        return ""

    def again(self, names: Iterable[str]) -> list[str]:
        """Take the measures of an earlier part of this run once more; what they are, in words.

        One that has nothing to do any more is passed over: the configuration may have been changed meanwhile.
        """
        known = {rung.name: rung for rung in self.rungs}
        return [said for name in names if name in known and (said := self._take(known[name]))]

    def relieve(self, step: int, error: BaseException) -> Generator[Told, None, bool]:
        """Whether the step after `step` whole ones may be tried again, since a measure was taken; says which."""
        let_go(self.device, error)
        said = self.climb()
        if said:
            yield Told(f"Out of memory in step {step + 1}, which is done again: {said}.{self.next_time()}", "warning")
        return bool(said)

    def next_time(self) -> str:
        """What to write into the YAML so that a run begins as this one ends, as a sentence with a blank before it."""
        lines = ", ".join(f"{path}: {value}" for path, value in self._settings.items())
        return f" To begin like this next time, set {lines}." if lines else ""

    def overheard(self, events: Generator[Event, None, Result]) -> Generator[Event, None, Result]:
        """The events, and among them what was said meanwhile by what may not yield it itself."""
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                return end.value
            while self.said:
                yield self.said.pop(0)
            yield event

    def _take(self, rung: Rung) -> str:
        said = rung.take()
        if said:
            self.taken.append(rung.name)
            self.told.append(said)
            self._settings |= rung.instead()
        return said
