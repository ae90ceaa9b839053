"""What a run leaves to read afterwards: a log in words, and TensorBoard events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image

from lora_trainer.contracts import Event, Finished, Prepared, Sampled, Saved, Skipped, Started, Stepped, Told
from lora_trainer.jobs.plan import Plan

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


def recorded(plan: Plan, events: Iterator[Event]) -> Iterator[Event]:
    """The same events, each written to the log and to TensorBoard on its way."""
    with ExitStack() as opened:
        log: TextIO | None = None
        board: _Board | None = None
        said = [plan.text()]  # before there is a log: a run that is refused leaves no folder behind
        for event in events:
            line = in_words(event)
            if line:
                said.append(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}")
            if isinstance(event, Started):
                plan.files.log.parent.mkdir(parents=True, exist_ok=True)
                log = opened.enter_context(plan.files.log.open("a", encoding="utf-8"))
                if plan.config.output.tensorboard:
                    board = opened.enter_context(_Board(plan, event.step))
                    said.append(board.missing)
                    if board.missing:
                        yield Told(board.missing)
            if log:
                log.writelines(f"{sentence}\n" for sentence in said if sentence)
                log.flush()  # a killed run should leave its last line
                said.clear()
            if board:
                board.take(event)
            yield event


def in_words(event: Event) -> str:
    """One line for a log; empty for events that only move a progress bar."""
    match event:
        case Told():
            return f"{event.level}: {event.text}"
        case Started():
            return f"start after step {event.step} of {event.steps}"
        case Stepped():
            rates = ", ".join(f"{part} {rate:.3g}" for part, rate in event.rates.items())
            return (
                f"step {event.step}/{event.steps} loss {event.loss:.5f} rate {rates} "
                f"gradient {event.gradient_norm:.4g} {event.seconds:.3f} s, {event.memory / 2**20:.0f} MiB"
            )
        case Skipped():
            return f"step {event.step}/{event.steps} skipped: loss {event.loss} or its gradient is not a finite number"
        case Saved():
            return f"saved {event.path.name}"
        case Sampled():
            return f"samples of step {event.step}: {', '.join(path.name for path in event.paths)}"
        case Finished():
            return f"{event.outcome}: {event.text}"
        case Prepared():
            return ""


class _Board:
    """TensorBoard's writer, if the package is there; what a resumed run draws again is cut off first."""

    def __init__(self, plan: Plan, start: int) -> None:
        self.missing = ""
        self._writer: SummaryWriter | None = None
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            self.missing = "TensorBoard events are not written: the package tensorboard is not installed."
        else:
            self._writer = SummaryWriter(str(plan.files.board), purge_step=start + 1 if start else None)

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._writer:
            self._writer.close()

    def take(self, event: Event) -> None:
        if self._writer is None:
            return
        writer: Any = self._writer
        if isinstance(event, Stepped):
            writer.add_scalar("loss", event.loss, event.step)
            writer.add_scalar("gradient_norm", event.gradient_norm, event.step)
            writer.add_scalar("memory_mib", event.memory / 2**20, event.step)
            for part, rate in event.rates.items():
                writer.add_scalar(f"learning_rate/{part}", rate, event.step)
        elif isinstance(event, Sampled):
            for index, path in enumerate(event.paths):
                with Image.open(path) as image:
                    writer.add_image(f"samples/{index + 1}", np.asarray(image), event.step, dataformats="HWC")
