"""What a run leaves to read afterwards: a log in words, and TensorBoard events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lora_trainer.contracts import (
    Event,
    Finished,
    Prepared,
    Sampled,
    Saved,
    Skipped,
    Started,
    Stepped,
    Told,
    Validated,
)
from lora_trainer.jobs.planned import RunPlan
from lora_trainer.weights.write import why_not_written

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


def recorded(plan: RunPlan, events: Iterator[Event]) -> Iterator[Event]:
    """The same events, each written to the log and to TensorBoard on its way; where the disk refuses, that is told."""
    with ExitStack() as opened:
        log: _Log | None = None
        board: _Board | None = None
        said = [plan.text()]  # before there is a log: a run that is refused leaves no folder behind
        for event in events:
            line = in_words(event)
            if line:
                said.append(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}")
            faults: list[str] = []
            if isinstance(event, Started):
                log = opened.enter_context(_Log(plan.files.log))
                if plan.config.output.tensorboard:
                    board = opened.enter_context(_Board(plan, event.step))
            if board:
                faults.append(board.take(event))
                said.extend(faults)
            if log:
                faults.append(log.write(f"{sentence}\n" for sentence in said if sentence))
                said.clear()
            yield from (Told(fault, "warning") for fault in faults if fault)
            yield event


class _Log:
    """The run's log. A disk that refuses costs lines of it, never the training."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._told = False

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file:
            self._file.close()

    def write(self, lines: Iterable[str]) -> str:
        """Append the lines; why that was not possible, at the first time."""
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = FileIO(self._path, "a")  # unbuffered: a killed run leaves its last line, a full disk none
            self._file.write("".join(lines).encode("utf-8"))
        except OSError as error:
            told, self._told = self._told, True
            return "" if told else f"The log has gaps: {why_not_written(self._path, error)}"
        return ""


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
        case Validated():
            parts = " ".join(f"{loss:.5f}" for loss in event.by_timestep)
            return f"held-out loss {event.loss:.5f} at step {event.step} ({parts}), best at step {event.best}"
        case Sampled():
            return f"samples of step {event.step}: {', '.join(path.name for path in event.paths)}"
        case Finished():
            return f"{event.outcome}: {event.text}"
        case Prepared():
            return ""


class _Board:
    """TensorBoard's writer, if the package is there; what a resumed run draws again is cut off first."""

    def __init__(self, plan: RunPlan, start: int) -> None:
        self._missing = ""  # why nothing is written, until it is told
        self._writer: SummaryWriter | None = None
        try:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(plan.files.board), purge_step=start + 1 if start else None)
        except ImportError:
            self._missing = "TensorBoard events are not written: the package tensorboard is not installed."
        except OSError as error:
            self._missing = f"TensorBoard events are not written: {error}."

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._writer:
            self._close(self._writer)

    def take(self, event: Event) -> str:
        """Draw it; why nothing is drawn any more, once."""
        missing, self._missing = self._missing, ""
        if self._writer is None:
            return missing
        try:
            _draw(self._writer, event)
        except OSError as error:
            self._close(self._writer)
            self._writer = None
            return f"TensorBoard events are written no more: {error}."
        return ""

    @staticmethod
    def _close(writer: SummaryWriter) -> None:
        with suppress(OSError):  # its last events, where the disk is full
            writer.close()


def _draw(writer: Any, event: Event) -> None:
    if isinstance(event, Stepped):
        writer.add_scalar("loss", event.loss, event.step)
        writer.add_scalar("gradient_norm", event.gradient_norm, event.step)
        writer.add_scalar("memory_mib", event.memory / 2**20, event.step)
        for part, rate in event.rates.items():
            writer.add_scalar(f"learning_rate/{part}", rate, event.step)
    elif isinstance(event, Sampled) and event.texts:
        for index, (prompt, text) in enumerate(zip(event.prompts, event.texts, strict=True)):
            writer.add_text(f"samples/{index + 1}", f"{prompt}\n\n{text}", event.step)
    elif isinstance(event, Validated):
        writer.add_scalar("validation/loss", event.loss, event.step)
        for place, loss in enumerate(event.by_timestep, start=1):
            writer.add_scalar(f"validation/range_{place}", loss, event.step)
    elif isinstance(event, Sampled):
        for index, path in enumerate(event.paths):
            with Image.open(path) as image:
                writer.add_image(f"samples/{index + 1}", np.asarray(image), event.step, dataformats="HWC")
