"""One job: what was asked, how far it is, and the orders that can be given to it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from lora_trainer.contracts import (
    Event,
    Finished,
    PlainError,
    Prepared,
    Saved,
    Skipped,
    Started,
    Stepped,
    Told,
    Validated,
)
from lora_trainer.jobs.events import EventLog, Numbered, jsonable
from lora_trainer.jobs.files import STATE_ENDING
from lora_trainer.jobs.tasks import Chore, ChoreKind, Task, Training, task_of
from lora_trainer.train.control import Controls

State = Literal["queued", "running", "paused", "done", "failed", "stopped"]

# What the steps of a chore are, in the words of a message.
_PIECES: dict[ChoreKind, str] = {
    "captions": "images", "class_images": "images", "answers": "answers", "plain": "layers", "model": "MB",
}  # fmt: skip
_SMOOTHED = 20  # steps whose seconds are averaged
_AFTER_A_CRASH = 1_000_000  # more events than can have come between the last record and the crash


class WrongMoment(PlainError):
    """An order that does not fit the state of the job."""


@dataclass(frozen=True)
class Status:
    """A job at one moment."""

    state: State
    step: int
    total_steps: int
    loss: float | None  # of the last step
    message: str
    seconds_per_step: float | None  # over the last steps
    mean_loss: float | None = None  # over the last tenth of the steps: a single step's says little
    best_validation: float | None = None  # lowest loss on what is held out; None where nothing is
    best_step: int | None = None  # at which it was


class Job:
    """A training or a chore in the queue, under way or over. Every method may be called from any thread.

    Orders that do not fit the state raise WrongMoment; those that are fulfilled already do nothing.
    """

    def __init__(
        self, id: str, raw: Mapping[str, Any], task: Task, *, log: Callable[[], EventLog] = EventLog,
        status: Status | None = None, saved: Iterable[Path] = (), queued: float | None = None,
    ) -> None:  # fmt: skip
        self.id = id
        self.raw = raw
        self.task = task
        self.queued = time.time() if queued is None else queued  # seconds since 1970; again when it is resumed
        self.control = Controls()
        self.changed: Callable[[Job], None] = lambda job: None  # called at each change worth a record; the registry's
        self._make_log = log
        self._log: EventLog | None = None
        self._status = status or Status("queued", 0, task.steps, None, "Waiting for its turn.", None)
        self._seconds: deque[float] = deque(maxlen=_SMOOTHED)
        self._losses: deque[float] = deque()
        self._saved = dict.fromkeys(saved)  # LoRA files in the order they were written, each once
        self._lock = RLock()
        self._counted: float | None = None  # when images of a chore were counted last

    # --- what it is ---

    @property
    def name(self) -> str:
        """Name of the LoRA, or of what else it is about."""
        return self.task.name

    @property
    def training(self) -> Training | None:
        """Its task, where that is a training."""
        return self.task if isinstance(self.task, Training) else None

    @property
    def status(self) -> Status:
        """Everything that changes, as it is at this moment."""
        return self._status

    @property
    def state(self) -> State:
        return self._status.state

    @property
    def step(self) -> int:
        """Steps done."""
        return self._status.step

    @property
    def total_steps(self) -> int:
        return self._status.total_steps

    @property
    def loss(self) -> float | None:
        """Of the last step."""
        return self._status.loss

    @property
    def message(self) -> str:
        """The last thing to tell, in a sentence."""
        return self._status.message

    @property
    def ended(self) -> bool:
        """Whether it is done, failed or stopped."""
        return self.state in ("done", "failed", "stopped")

    @property
    def files(self) -> list[Path]:
        """The LoRA files it wrote that are still there, oldest first; of a job that is done the one to use is last."""
        with self._lock:
            saved = list(self._saved)
        return [path for path in saved if path.exists()]

    @property
    def resumable(self) -> bool:
        """Whether it ended before its end and left a state to go on from."""
        return self.state in ("failed", "stopped") and self.resumable_from is not None

    @property
    def resumable_from(self) -> int | None:
        """Steps done in the newest state on disk; None where there is none."""
        return max(self.training.files.steps_saved(STATE_ENDING), default=None) if self.training else None

    @property
    def log(self) -> EventLog:
        """Its events; those of an earlier server are read at the first use."""
        with self._lock:
            if self._log is None:
                self._log = self._make_log()
            return self._log

    def events(self, after: int = 0, limit: int = 1000) -> list[Numbered]:
        """The first `limit` events with a number above `after`."""
        return self.log.after(after, limit)

    # --- orders ---

    def stop(self) -> None:
        """End after the step under way and keep what was learnt; a job that waits never begins."""
        with self._lock:
            state = self.state
            self.control.stop()
            if state == "queued":
                done = "trained" if self.training else "changed"
                self._finish("stopped", None, f"Stopped while it waited for its turn; nothing was {done}.")
            elif state in ("running", "paused"):
                images = not self.training and self._pieces == "images"
                now = "the step" if self.training else "the image" if images else "what is"
                self._set(state="running", message=f"Stopping: {now} under way is finished, then all is saved.")
        if not self.ended or state == "queued":
            self.changed(self)

    def pause(self) -> None:
        """Hold still after the step under way."""
        self._expect_training("paused")
        self._expect("pause", "running", "paused")
        with self._lock:
            if self.state == "running" and not self.control.stopped():
                self.control.pause()
                self._set(state="paused", message="Paused.")

    def go_on(self) -> None:
        """End a pause."""
        self._expect("go on with", "running", "paused", "queued")
        with self._lock:
            if self.state == "paused":
                self.control.go_on()
                self._set(state="running", message="Going on.")

    def save_now(self) -> None:
        """Write a checkpoint after the step under way."""
        self._expect_training("saved")
        self._expect("save", "running", "paused")
        self.control.save_now()

    def sample_now(self) -> None:
        """Draw the samples after the step under way."""
        training = self._expect_training("sampled")
        self._expect("draw samples of", "running", "paused")
        if not training.config.samples.prompts:
            raise PlainError(f"Samples of {self.name} were asked for, but no prompt was given; set samples.prompts.")
        self.control.sample_now()

    def _expect_training(self, what: str) -> Training:
        if self.training is None:
            raise WrongMoment(
                f"{self.name} is no training, and cannot be {what}; it can be stopped, and keeps what is done."
            )
        return self.training

    def _expect(self, what: str, *states: State) -> None:
        state = self.state
        if state not in states:
            raise WrongMoment(f"The order was to {what} {self.name}, but it is {state}; give it to a running job.")

    # --- its course, told by the registry's worker ---

    def begin(self) -> bool:
        """From queued to running; False where it was stopped meanwhile."""
        with self._lock:
            if self.state != "queued":
                return False
            self._set(state="running", message="Preparing.")
        self.changed(self)
        return True

    def again(self, task: Training, raw: Mapping[str, Any]) -> None:
        """Queue it once more, to go on from its newest state."""
        with self._lock:
            self.task, self.raw, self.control, self.queued = task, raw, Controls(), time.time()
            self._seconds.clear()
            self._losses.clear()
            self._status = Status("queued", self.step, task.steps, self.loss, "Waiting for its turn.", None)
        self.changed(self)

    def take(self, event: Event) -> None:
        """Note what happened; `Finished` goes to `end`, when nothing can go wrong any more."""
        with self._lock:
            self.log.add(event, time.time())
            match event:
                case Told():
                    self._set(message=event.text)
                case Prepared() if self.training is None:
                    self._count(event)
                case Prepared():
                    self._set(message=f"Preparing {event.what}: {event.done} of {event.total}")
                case Started():
                    self._set(step=event.step, total_steps=event.steps, message="Training.")
                case Stepped():
                    self._seconds.append(event.seconds)
                    pace = sum(self._seconds) / len(self._seconds)
                    self._set(
                        step=event.step, total_steps=event.steps, loss=event.loss, seconds_per_step=pace,
                        mean_loss=self._averaged(event),
                    )  # fmt: skip
                case Skipped():
                    self._set(step=event.step, total_steps=event.steps)
                case Validated() if event.best == event.step:
                    self._set(best_validation=event.loss, best_step=event.step)
                case Saved():
                    self._saved[event.path.absolute()] = None
                case _:
                    pass
        if isinstance(event, Saved):
            self.changed(self)

    def end(self, finished: Finished) -> None:
        """It is over."""
        with self._lock:
            if finished.path and (path := finished.path.absolute()) in self._saved:
                self._saved[path] = self._saved.pop(path)
            self._finish(finished.outcome, finished.path, finished.text, finished.step)
        self.changed(self)

    @property
    def _pieces(self) -> str:
        return _PIECES[self.task.kind] if isinstance(self.task, Chore) else "steps"

    def _averaged(self, event: Stepped) -> float:
        self._losses.append(event.loss)
        while len(self._losses) > max(1, event.steps // 10):
            self._losses.popleft()
        return sum(self._losses) / len(self._losses)

    def _count(self, event: Prepared) -> None:
        """An image more of a chore; the first ones tell no pace, because a model was loaded before them."""
        if event.done == 0:
            self._seconds.clear()  # what was counted before, as a download is, has another pace
        now, done = time.monotonic(), event.done - self.step
        if self._counted is not None and done > 0:
            self._seconds.append((now - self._counted) / done)
        self._counted = now if event.done else None
        pace = sum(self._seconds) / len(self._seconds) if self._seconds else None
        message = f"{event.done} of {event.total} {f'{event.unit} of the {event.what}' if event.unit else self._pieces}"
        self._set(step=event.done, total_steps=event.total, message=message, seconds_per_step=pace)

    def _finish(self, outcome: Literal["done", "stopped", "failed"], path: Path | None, text: str,
                step: int | None = None) -> None:  # fmt: skip
        step = self.step if step is None else step
        self.log.add(Finished(outcome, step, path, text), time.time())
        self._set(state=outcome, message=text, step=step)

    def _set(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)

    # --- its record ---

    def record(self) -> dict[str, Any]:
        """What a later server needs to know, as JSON values."""
        with self._lock:
            task, status = self.task, self._status
            return {
                "raw": jsonable(self.raw), **task.record(), "queued": self.queued,
                "last": self.log.last,
                "saved": [str(path) for path in self._saved],
                "status": {"state": status.state, "step": status.step, "total_steps": status.total_steps,
                           "loss": status.loss, "message": status.message, "mean_loss": status.mean_loss,
                           "best_validation": status.best_validation, "best_step": status.best_step},
            }  # fmt: skip

    @classmethod
    def remembered(cls, id: str, record: Mapping[str, Any], events: Callable[[], list[Numbered]]) -> Job:
        """The job of an earlier server. Raises KeyError, TypeError, ValueError and ConfigError for a foreign record."""
        task = task_of(record)
        status = Status(**record["status"], seconds_per_step=None)
        last = int(record["last"])
        if status.state in ("queued", "running", "paused"):
            status = replace(status, state="stopped", message=_cut_off(status, task))
            last += _AFTER_A_CRASH
        return cls(id, record["raw"], task, log=lambda: EventLog(events(), last), status=status,
                   saved=map(Path, record["saved"]), queued=float(record["queued"]))  # fmt: skip


def _cut_off(status: Status, task: Task) -> str:
    if isinstance(task, Chore):
        done = f"{status.step} of {status.total_steps} {_PIECES[task.kind]}"
        return f"The server ended after {done}, which are kept; start it again."
    if status.state == "queued":
        return "The server ended while this was waiting; Resume puts it into the queue again."
    saved = task.files.steps_saved(STATE_ENDING)
    if not saved:
        return "The server ended while this was running; nothing had been saved yet, so Resume begins anew."
    return f"The server ended while this was running; Resume goes on from step {saved[-1]} of {status.total_steps}."
