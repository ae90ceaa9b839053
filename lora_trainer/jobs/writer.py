"""Writes what a run has learnt, and says so."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lora_trainer.contracts import Event, Finished, PlainError, Saved, Told
from lora_trainer.jobs.checkpoints import prune, write_state
from lora_trainer.jobs.planned import RunPlan
from lora_trainer.jobs.readied import Output
from lora_trainer.jobs.recipe import resumable_facts
from lora_trainer.train.loop import Outcome
from lora_trainer.train.state import TrainingState
from lora_trainer.train.told import in_words
from lora_trainer.train.watch import Look
from lora_trainer.weights.write import free_name

_log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """What became of the last thing that a run writes."""

    lora: Path | None  # where it lies; None where no place would take it
    refused: str  # why it is not where it belongs, as a sentence; empty if it is
    resumable: bool  # whether the state is written too


@dataclass(frozen=True)
class Writer:
    """The LoRA, its checkpoints and states of one run."""

    plan: RunPlan
    output: Output

    def checkpoint(self, state: TrainingState) -> Saved | Told:
        """A LoRA that can be used and a state that can be gone on from; a full disk does not end the run.

        The LoRA before the state: a run killed in between resumes from the older state and writes the same again.
        """
        path = self.plan.files.checkpoint(state.step)
        try:
            self.output.write(path, state)
            self._write_state(state)
        except PlainError as error:
            return Told(f"Step {state.step} was not saved, the training goes on: {error}", "warning")
        self.output.announce(path)
        return Saved(state.step, path, final=False)

    def keep_best(self, state: TrainingState) -> Saved | Told:
        """The LoRA of the step that is best so far on what is held out, in the place of the one before."""
        path = self.plan.files.best
        try:
            self.output.write(path, state)
        except PlainError as error:
            return Told(f"Step {state.step} is the best so far but was not kept: {error}", "warning")
        self.output.announce(path)
        return Saved(state.step, path, final=False)

    def keep(self, path: Path, state: TrainingState, *, final: bool = False) -> Generator[Event, None, Kept]:
        """Write what the run ends with. There is no next checkpoint to make up for this one: where its own place
        refuses the LoRA, another one is looked for, and the state is tried in any case."""
        lora, refused = self._lora_somewhere(path, state)
        resumable = True
        try:
            self._write_state(state)
        except Exception as error:
            _log.error("The state of step %s was not written.", state.step, exc_info=error)
            resumable = False
            yield Told(f"The run cannot be resumed from step {state.step}: {in_words(error)}", "warning")
        if lora:
            if not final:  # then its card is missing yet
                self.output.announce(lora)
            yield Saved(state.step, lora, final=final)
        return Kept(lora, refused, resumable)

    def finish(self, outcome: Outcome) -> Iterator[Event]:
        """Keep the outcome and end with `Finished`; what others make of the result is told before the end."""
        state, files = outcome.state, self.plan.files
        if outcome.kind == "diverged":
            yield self._diverged(state)
        elif outcome.kind not in ("done", "no better"):
            yield from self._ended_early(outcome)
        else:
            kept = yield from self.keep(files.lora, state, final=True)
            if kept.refused:
                text = f"{self._how_far(outcome)}, but {kept.refused}{_left(kept, 'writes it again')}"
                yield Finished("failed", state.step, kept.lora, text)
                return
            yield from self.output.present(files.lora)
            better, told = self._which(state)
            done = "Done" if outcome.kind == "done" else self._how_far(outcome)
            yield Finished("done", state.step, better or files.lora, f"{done}: {files.lora}{told}")

    def _how_far(self, outcome: Outcome) -> str:
        step = outcome.state.step
        if outcome.kind == "done":
            return f"All {step} steps are done"
        looks = f"{self.plan.config.validation.patience} looks at the held-out data were no better"
        return f"Ended after step {step} of {self.plan.steps}, since {looks}"

    def _which(self, state: TrainingState) -> tuple[Path | None, str]:
        """The LoRA to use where it is not the last one, and what is to be said of it after the name of the last."""
        looks = [Look(*look) for look in state.course.get("looks", ())]
        if not looks:
            return None, ""
        best, last = min(looks, key=lambda look: look.loss), looks[-1]
        if best.step == last.step:
            return None, ", which is also the best on the held-out data."
        if best.step == 0 or not self.plan.files.best.exists():
            return None, (
                "; on the held-out data no step was better than before the training, so lower the learning rate or "
                "look at the captions."
            )
        better = self.plan.files.best
        losses = f"(loss {best.loss:.4f}, at the end {last.loss:.4f})"
        return better, f"; the held-out data say that step {best.step} is better {losses}: use {better}"

    def _ended_early(self, outcome: Outcome) -> Iterator[Event]:
        step, steps = outcome.state.step, self.plan.steps
        starved = outcome.kind == "out of memory"
        why = f"Out of memory on {self.plan.device}" if starved else "Stopped"
        if step == 0:
            so = f"before anything was saved; {self._advice()}, and start again" if starved else (
                "before the first step was done; nothing was trained yet; resume (train --resume) begins anew"
            )  # fmt: skip
            yield Finished("failed" if starved else "stopped", 0, None, f"{why} {so}.")
            return
        kept = yield from self.keep(self.plan.files.checkpoint(step), outcome.state)
        if kept.refused:
            what = f"{why} after step {step} of {steps}, but {kept.refused}{_left(kept, 'goes on from there')}"
        elif starved:
            what = (
                f"{why} after step {step} of {steps}; {self._advice()}, and go on: resume with that (train --resume), "
                f"or start a new run from {kept.lora} (network.start_from)."
            )
        else:
            what = f"{why} after step {step} of {steps}; resume (train --resume) goes on from there."
        yield Finished("failed" if starved or kept.refused else "stopped", step, kept.lora, what)

    def _advice(self) -> str:
        """What is left to do where all that the run may do by itself was done."""
        if self.plan.config.train.gradient_checkpointing == "no":
            return "set train.gradient_checkpointing: auto"
        return f"set {self.plan.smaller}"

    def _diverged(self, state: TrainingState) -> Finished:
        path = self.plan.files.checkpoint(state.step) if state.step else None
        kept = f"{path} holds the last good weights, of step {state.step}" if path else "no step had been saved before"
        more = "" if self.plan.dtype == torch.float32 else f", or use {self._more_precise()}"
        return Finished(
            "failed",
            state.step,
            path,
            f"Stopped: the loss or its gradient was not a finite number three times in a row; {kept}. "
            f"Lower learning_rate{more}, and start again.",
        )

    def _more_precise(self) -> str:
        return "mixed_precision: no" if self.plan.owns_base else "the WebUI with --no-half"

    def _lora_somewhere(self, path: Path, state: TrainingState) -> tuple[Path | None, str]:
        """Where the LoRA could be written, and why not at `path`."""
        refused = ""
        for place in (path.parent, self.plan.files.work, Path(tempfile.gettempdir())):
            to = path if place == path.parent else free_name(place / path.name)
            try:
                self.output.write(to, state)
            except Exception as error:
                _log.error("The LoRA was not written to %s.", to, exc_info=error)
                refused = refused or in_words(error)
            else:
                return to, refused
        return None, refused

    def _write_state(self, state: TrainingState) -> None:
        write_state(self.plan.files, state, resumable_facts(self.plan))
        prune(self.plan.files, self.plan.config.output.keep_last)


def _left(kept: Kept, resuming: str) -> str:
    """Where the work is, as sentences after the one that says why it is not where it belongs."""
    told = f" The LoRA is in {kept.lora} instead." if kept.lora else ""
    if kept.resumable:
        told += f" When that is mended, resume (train --resume) {resuming}."
    return told or " It could be written nowhere else either."
