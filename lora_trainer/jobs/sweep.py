"""A sweep: its runs one after the other, and a table of what came out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_trainer.config.load import load
from lora_trainer.config.sweep import Variant
from lora_trainer.contracts import Control, Event, Finished, Host, PlainError, Stepped, Told, Validated
from lora_trainer.data.caption_files import replace_text
from lora_trainer.jobs.files import RunFiles
from lora_trainer.jobs.planned import files_asked_for

_LAST = 0.1  # share of the steps over which the last loss is averaged: a single step's says little


@dataclass
class Result:
    """What came of one run, or nothing yet."""

    variant: Variant
    outcome: str = "waiting"  # then "done", "stopped" or "failed"
    steps: int = 0
    loss: float | None = None  # mean of the last tenth of the steps
    best_validation: float | None = None  # lowest loss on what is held out; None where nothing is
    best_step: int = 0  # at which it was
    seconds_per_step: float | None = None
    file: str = ""
    text: str = ""  # what the run said at its end
    _losses: list[float] = field(default_factory=list[float])
    _seconds: float = 0.0

    def take(self, event: Event) -> None:
        """Learn from one event of the run."""
        if isinstance(event, Stepped):
            self.steps = event.step
            self._losses.append(event.loss)
            self._seconds += event.seconds
            last = self._losses[-max(1, round(len(self._losses) * _LAST)) :]
            self.loss = sum(last) / len(last)
            self.seconds_per_step = self._seconds / len(self._losses)
        elif isinstance(event, Validated):
            if event.best == event.step:  # not so in a run gone on with whose best was before: its loss is not told
                self.best_validation, self.best_step = event.loss, event.step
        elif isinstance(event, Finished):
            self.outcome, self.text = event.outcome, event.text
            self.file = str(event.path) if event.path else ""

    def row(self) -> dict[str, str]:
        """As the table shows it."""
        facts = {
            "outcome": self.outcome,
            "steps": str(self.steps or ""),
            "loss": "" if self.loss is None else f"{self.loss:.5f}",
            "best_validation": "" if self.best_validation is None else f"{self.best_validation:.5f}",
            "best_step": "" if self.best_validation is None else str(self.best_step),
            "seconds_per_step": "" if self.seconds_per_step is None else f"{self.seconds_per_step:.3f}",
            "file": self.file,
        }
        return {"run": self.variant.label} | {path: str(value) for path, value in self.variant.values.items()} | facts


def sweep(variants: Sequence[Variant], *, host: Host, control: Control, resume: bool = False) -> Iterator[Event]:
    """Train every variant; the last event is `Finished`, for all of them.

    A run that fails does not keep the next from beginning; stopping ends the run under way and the sweep. With
    `resume`, runs that the table calls done are left alone, and one that was cut off goes on. Raises PlainError
    before anything is trained where one of the runs could not be.
    """
    from lora_trainer.jobs.plan import plan_run
    from lora_trainer.jobs.run import run

    configs = [load(variant.raw) for variant in variants]
    for config in configs:
        plan_run(config, host, resume=resume)
    table = _table(files_asked_for(configs[0], host), variants[0].label, resume)
    results = [Result(variant) for variant in variants]
    finished = _done_before(table) if resume else {}
    for number, (config, result) in enumerate(zip(configs, results, strict=True), start=1):
        if before := finished.get(result.variant.label):
            _recall(result, before)
            yield Told(f"Run {number} of {len(results)}: {_in_words(result.variant)}: done already, and left alone.")
            continue
        if control.stopped():
            break
        yield Told(f"Run {number} of {len(results)}: {_in_words(result.variant)}")
        try:
            for event in run(config, host=host, control=control, resume=resume):
                result.take(event)
                if not isinstance(event, Finished):
                    yield event
        except PlainError as error:
            result.outcome, result.text = "failed", str(error)
        yield Told(result.text, "info" if result.outcome == "done" else "warning")
        write_table(table, results)
    yield _end(results, table)


def write_table(path: Path, results: Sequence[Result]) -> None:
    """One row a run, with what varies and what came out."""
    rows = [result.row() for result in results]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue(), keep=False)


def table_text(results: Sequence[Result]) -> str:
    """The results for a terminal, the best first: by what is held out where every run has that, else by the loss."""
    losses = [result.loss for result in results]
    if all(result.best_validation is not None for result in results if result.outcome != "waiting"):
        losses = [result.best_validation for result in results]
    places = sorted(range(len(results)), key=lambda place: (losses[place] is None, losses[place] or 0.0))
    rows = [results[place].row() for place in places]
    names = [name for name in rows[0] if name not in ("run", "file") and any(row[name] for row in rows)]
    wide = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = ["  ".join(name.ljust(wide[name]) for name in names)]
    lines += ["  ".join(row[name].ljust(wide[name]) for name in names) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _table(files: RunFiles, label: str, resume: bool) -> Path:
    """The table beside the runs' folders: the newest one where it is gone on with, else a new one."""
    first = files.work.parent / f"{files.name.removesuffix(f'-{label}')}-sweep.csv"
    table, number = first, 1
    while table.exists():
        number += 1
        newest, table = table, first.with_stem(f"{first.stem}-{number}")
        if resume and not table.exists():
            return newest
    return table


def _in_words(variant: Variant) -> str:
    return ", ".join(f"{path} {value}" for path, value in variant.values.items())


def _done_before(table: Path) -> dict[str, dict[str, str]]:
    """Rows of runs that are done, by label; none where there is no table or it cannot be read."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            return {row["run"]: row for row in csv.DictReader(file) if row.get("outcome") == "done" and row.get("run")}
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}


def _recall(result: Result, row: dict[str, str]) -> None:
    result.outcome, result.file = "done", row.get("file", "")
    result.steps = int(row["steps"]) if row.get("steps", "").isdecimal() else 0
    result.loss = _number(row.get("loss", ""))
    result.best_validation = _number(row.get("best_validation", ""))
    result.best_step = int(row["best_step"]) if row.get("best_step", "").isdecimal() else 0
    result.seconds_per_step = _number(row.get("seconds_per_step", ""))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _end(results: Sequence[Result], table: Path) -> Finished:
    outcomes = [result.outcome for result in results]
    done = outcomes.count("done")
    steps = sum(result.steps for result in results)
    told = f"{done} of {len(results)} runs are done; {table} has the results.\n{table_text(results)}"
    outcome = "failed" if "failed" in outcomes else "stopped" if done < len(results) else "done"
    return Finished(outcome, steps, None, told)
