"""The heaviest step of a run tried before the run, on the real model: what it takes, and what has to be done for it."""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lora_trainer.contracts import Control, Event, Judged, PlainError
from lora_trainer.train.ladder import Ladder
from lora_trainer.train.memory import Room, in_gigabytes, is_out_of_memory, let_go, room, watched
from lora_trainer.train.optimizers import Updater
from lora_trainer.train.pieces import Pieces
from lora_trainer.train.processes import Processes
from lora_trainer.train.turns import Exclusive, in_turn

# A run may take more than its heaviest step by itself: after some thousand steps of changing sizes the allocator's
# pieces lie less well. torch's own notes on fragmentation (docs, "CUDA semantics") give no number; a tenth is ours.
MARGIN = 1.1
# On a CPU the first pass does not show what kernels and malloc keep for the next; the second does, and takes up to an
# eighth more (tests/bench/RESULTS.md). Bytes from which that is worth a pass.
_LARGE = 2**28


class Measured(NamedTuple):
    """What one step takes, in bytes, above what the run holds between two steps."""

    step: int  # at its highest
    kept: int  # by the optimizer, from the first step on
    room: Room | None  # before it; None where the device does not say

    @property
    def whole(self) -> int:
        return self.step + self.kept

    @property
    def fits(self) -> bool:
        """Whether it goes into what was free. Without a word from the device: it did, when it was measured."""
        return self.room is None or self.whole * MARGIN <= self.room.free


@dataclass(frozen=True)
class Rehearsal:
    """The step that takes most, gone through to its gradients and forgotten; weights, moments and order stay."""

    heaviest: Callable[[], Any]  # the micro-batch that takes most
    what: str  # it in words: "512 x 512 px, batch of 2"
    loss: Callable[[Any], Any]
    pieces: Pieces
    updater: Updater
    processes: Processes

    def measure(self) -> Measured:
        """Raises what torch raises where the memory does not suffice."""
        device = self.processes.device
        let_go(device)
        before = room(device)
        try:
            with watched(device) as taken:
                with watched(device) as first:
                    self._go_through()
                if device.type == "cpu" and first.peak > _LARGE:
                    self.updater.zero()
                    self._go_through()
            kept = self.updater.rehearse()
        finally:
            self.updater.zero()
        return Measured(taken.peak, kept, before)

    def _go_through(self) -> None:
        for piece, share in self.pieces(self.heaviest()):
            self.updater.backward(self.loss(piece) * share)


def make_fit(
    rehearsal: Rehearsal, ladder: Ladder, exclusive: Exclusive, control: Control, smaller: str
) -> Generator[Event, None, bool]:
    """Take measures until the heaviest step fits, and tell the verdict; False when stop was ordered.

    `smaller` is what to lower where nothing helps, as the end of "set ...". Raises PlainError where the step does not
    go through with every measure taken.
    """
    taken: list[str] = []
    first: Measured | None = None
    while True:
        try:
            measured = yield from in_turn(exclusive, control, rehearsal.measure)
            if measured is None:
                return False
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            let_go(rehearsal.processes.device, error)
            measured = None
        first = first or measured
        if not rehearsal.processes.any(measured is None or not measured.fits):
            break
        said = ladder.climb()
        if not said:
            break
        taken.append(said)
    if measured is None:
        raise PlainError(
            f"The memory does not suffice: the largest step ({rehearsal.what}) needs more than there is on "
            f"{rehearsal.processes.device}, whatever is done to save some; set {smaller}, or close what else uses it."
        )
    yield _verdict(rehearsal, first or measured, measured, taken, ladder, smaller)
    return True


def _verdict(
    rehearsal: Rehearsal, first: Measured, last: Measured, taken: list[str], ladder: Ladder, smaller: str
) -> Judged:
    """The last measurement in words, and what was done since the first."""
    what, network = rehearsal.what, rehearsal.updater.held

    def judged(text: str, level: Literal["info", "warning"] = "info") -> Judged:
        free = last.room.free if last.room else None
        taken_all = tuple(ladder.taken)
        return Judged(text, level, last.step, last.kept, network, free, taken_all)

    free = f"{in_gigabytes(last.room.free)} are free" if last.room else "how much is free this device does not say"
    if not taken and last.fits:
        return judged(f"Memory: the largest step ({what}) takes {in_gigabytes(last.whole)}, and {free}: it fits.")
    done = f" Therefore {'; '.join(taken)}.{ladder.next_time()}" if taken else ""
    before = "more than there is" if first is last else in_gigabytes(first.whole)
    now = f"Memory: the largest step ({what}) takes {in_gigabytes(last.whole)}"
    if last.fits:
        return judged(f"{now} where it took {before}, and {free}.{done}")
    return judged(
        f"{now}, and {free}: it went through when it was tried, but it may be slow, or not go through later.{done} "
        f"To be sure, set {smaller}.", "warning",
    )  # fmt: skip
