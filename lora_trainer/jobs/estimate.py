"""How long a run will take, judged by the last one of its kind; and what it will do, in one sentence."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from lora_trainer.jobs.records import Records

if TYPE_CHECKING:
    from lora_trainer.jobs.planned import RunPlan

_FILE = "pace.json"
_KEPT = 100  # kinds of run remembered


def kind_of(plan: RunPlan) -> str:
    """What decides the seconds of a step, as one word to remember them by."""
    config = plan.config
    parts = [
        plan.pace_key, f"{plan.samples_per_step}/{config.data.batch_size}", str(plan.device),
        plan.precision, config.network.kind, f"r{config.network.rank}", config.network.targets, "+".join(plan.rates),
        "checkpointed" if config.train.gradient_checkpointing == "yes" else "stored",
    ]  # fmt: skip
    return " ".join(parts)


class Paces:
    """Seconds per step of the last run of each kind; kept on disk with the jobs."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.Lock()
        known = records.recall(_FILE)
        self._known: dict[str, float] = known if isinstance(known, dict) else {}

    def learn(self, kind: str, seconds_per_step: float) -> None:
        """Remember how fast a run was."""
        with self._lock:
            self._known.pop(kind, None)
            self._known[kind] = seconds_per_step
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
            known = dict(self._known)
        self._records.remember(_FILE, known)

    def seconds_per_step(self, kind: str) -> float | None:
        """Of the last run of this kind; None if there was none."""
        with self._lock:
            return self._known.get(kind)


def sentence(plan: RunPlan, seconds: float | None) -> str:
    """What the run will do: "30 images, 28 with captions: 1500 steps (50 epochs) at 512 px, about 12 minutes"."""
    work = f"{_count(plan.steps, 'step')} ({plan.epochs:.3g} epochs) {plan.size_told}"
    time = f", about {duration(seconds)}" if seconds is not None else ""
    return f"{plan.data_told}: {work}{time}."


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 90:
        return _count(max(1, round(seconds)), "second")
    minutes = round(seconds / 60)
    if minutes < 90:
        return _count(minutes, "minute")
    hours, rest = divmod(minutes, 60)
    return f"{_count(hours, 'hour')} {rest} min" if rest else _count(hours, "hour")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
