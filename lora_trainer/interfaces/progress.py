"""A run's events on a terminal: a bar that moves, or plain lines where nobody is watching it move."""

from __future__ import annotations

import io
import math
import os
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol, TextIO, cast

from tqdm import tqdm

from lora_trainer.contracts import Event, Finished, Prepared, Sampled, Saved, Skipped, Started, Stepped, Told, Validated

SMOOTHED = 20  # steps: a single step's loss says little, since it depends on the timesteps that were drawn
LINES = 50  # lines of a whole run, where there is no terminal
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class View(Protocol):
    """Where progress is shown."""

    def say(self, text: str) -> None: ...

    def prepared(self, event: Prepared) -> None: ...

    def started(self, event: Started) -> None: ...

    def stepped(self, event: Stepped, loss: float) -> None: ...

    def close(self) -> None: ...


def follow(events: Iterable[Event], stream: TextIO) -> Finished | None:
    """Show each event as it comes; returns how the run ended."""
    if int(os.environ.get("RANK", "0")) > 0:
        stream = io.StringIO()  # one of several processes, of which the first speaks for all
    view: View = _Bar(stream) if stream.isatty() else _Lines(stream)
    losses: deque[float] = deque(maxlen=SMOOTHED)
    end: Finished | None = None
    try:
        for event in events:
            if isinstance(event, Stepped):
                losses.append(event.loss)
                view.stepped(event, sum(losses) / len(losses))
            elif isinstance(event, Finished):
                end = event
            elif isinstance(event, Prepared):
                view.prepared(event)
            elif isinstance(event, Started):
                view.started(event)
            else:
                view.say(sentence(event))
    finally:
        view.close()
    if end:
        view.say(end.text)
    return end


def exit_code(end: Finished | None) -> int:
    """0 done, 130 stopped by hand, 1 failed."""
    return {"done": 0, "stopped": 130, "failed": 1}[end.outcome] if end else 1


def sentence(event: Told | Saved | Validated | Sampled | Skipped) -> str:
    """What an event says in a line."""
    if isinstance(event, Told):
        return f"Warning: {event.text}" if event.level == "warning" else event.text
    if isinstance(event, Saved):
        return f"Saved {event.path} at step {event.step}."
    if isinstance(event, Validated):
        best = "the best so far" if event.best == event.step else f"the best is step {event.best}"
        return f"Loss on the held-out data at step {event.step}: {event.loss:.5f}, {best}."
    if isinstance(event, Sampled) and event.texts:
        told = "\n".join(f"  {prompt}\n    {text}" for prompt, text in zip(event.prompts, event.texts, strict=True))
        return f"Answers at step {event.step}:\n{told}"
    if isinstance(event, Sampled):
        drawn = f"{len(event.paths)} samples" if len(event.paths) != 1 else "1 sample"
        return f"Drew {drawn} at step {event.step}: {', '.join(str(path) for path in event.paths)}"
    if event.in_a_row == 0:
        return f"Step {event.step} was too large for fp16; skipped, and the loss is scaled lower from here."
    what = f"the loss {event.loss}" if not math.isfinite(event.loss) else "a gradient that is no number"
    return f"Warning: step {event.step} had {what}; skipped ({event.in_a_row} in a row)."


def _facts(event: Stepped, loss: float) -> dict[str, str]:
    rates = sorted(set(event.rates.values()), reverse=True)
    return {
        "loss": f"{loss:.4f}",
        "lr": "/".join(f"{rate:.2e}" for rate in rates),
        "mem": f"{event.memory / 2**30:.1f} GiB",
    }


class _Bar:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None
        self._what = ""

    def say(self, text: str) -> None:
        tqdm.write(text, file=self._stream)

    def prepared(self, event: Prepared) -> None:
        self._show(f"Preparing {event.what}", event.done, event.total, event.unit or "it")

    def started(self, event: Started) -> None:
        self._show("Training", event.step, event.steps, "step")

    def stepped(self, event: Stepped, loss: float) -> None:
        bar = self._show("Training", event.step, event.steps, "step")
        bar.set_postfix(_facts(event, loss))

    def _show(self, what: str, done: int, total: int, unit: str) -> tqdm[Any]:
        bar = self._bar
        if bar is None or self._what != what:
            self.close()
            bar = self._bar = cast(
                "tqdm[Any]",
                tqdm(desc=what, initial=done, total=total, unit=unit, file=self._stream, bar_format=BAR,
                     dynamic_ncols=True),
            )  # fmt: skip
            self._what = what
        bar.update(done - bar.n)
        return bar

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._seconds: deque[float] = deque(maxlen=SMOOTHED)
        self._begun = 0  # step at which this process came in
        self._preparing = Prepared("", 0, 0)  # the first event of what is being prepared
        self._since = 0.0  # seconds, when that came
        self._told = 0  # how much of it was done when it was told of last

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def prepared(self, event: Prepared) -> None:
        if event.what != self._preparing.what or event.done < self._told:
            self._preparing, self._since, self._told = event, time.monotonic(), 0
        if event.done != event.total and event.done - self._told < max(1, event.total // 10):
            return
        self._told = event.done
        done, seconds = event.done - self._preparing.done, time.monotonic() - self._since
        pace = done / seconds if seconds > 0 else 0.0
        unit = event.unit or "it"
        left = f", {pace:.2f} {unit}/s, {tqdm.format_interval((event.total - event.done) / pace)} left" if pace else ""
        self.say(f"Preparing {event.what}: {event.done} of {event.total}{event.unit and ' ' + event.unit}{left}")

    def started(self, event: Started) -> None:
        self._begun = event.step
        self.say(f"Training: {event.steps - event.step} steps, {event.step} behind")

    def stepped(self, event: Stepped, loss: float) -> None:
        self._seconds.append(event.seconds)
        if event.step not in (self._begun + 1, event.steps) and event.step % max(1, event.steps // LINES):
            return
        pace = sum(self._seconds) / len(self._seconds)
        facts = "  ".join(f"{name} {fact}" for name, fact in _facts(event, loss).items())
        left = tqdm.format_interval((event.steps - event.step) * pace)
        self.say(f"step {event.step}/{event.steps}  {facts}  {pace:.2f} s/step  {left} left")

    def close(self) -> None:
        pass
