"""Writes what a run has learnt, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.contracts import BaseModel, Event, Finished, Host, PlainError, Saved, Told
from lora_trainer.jobs.checkpoints import prune, write_state
from lora_trainer.jobs.plan import Plan
from lora_trainer.jobs.recipe import lora_metadata, resumable_facts
from lora_trainer.networks.file import write_lora
from lora_trainer.train.loop import Outcome
from lora_trainer.train.state import TrainingState


@dataclass(frozen=True)
class Writer:
    """The LoRA, its checkpoints and states of one run."""

    plan: Plan
    base: BaseModel
    host: Host

    def checkpoint(self, state: TrainingState) -> Saved | Told:
        """A LoRA that can be used and a state that can be gone on from; a full disk does not end the run."""
        path = self.plan.files.checkpoint(state.step)
        try:
            self._write(path, state)
        except PlainError as error:
            return Told(f"Step {state.step} was not saved, the training goes on: {error}", "warning")
        return Saved(state.step, path, final=False)

    def finish(self, outcome: Outcome) -> Iterator[Event]:
        """Keep the outcome and end with `Finished`. Raises PlainError where the finished LoRA cannot be written."""
        state, files = outcome.state, self.plan.files
        if outcome.kind == "failed":
            yield self._failed(state)
        elif outcome.kind == "stopped":
            yield from self._stopped(state)
        else:
            self._write(files.lora, state)
            yield Saved(state.step, files.lora, final=True)
            self.host.announce(files.lora)
            yield Finished("done", state.step, files.lora, f"Done: {files.lora}")

    def _stopped(self, state: TrainingState) -> Iterator[Event]:
        if state.step == 0:
            yield Finished("stopped", 0, None, "Stopped before the first step; nothing was trained.")
            return
        saved = self.checkpoint(state)
        yield saved
        yield Finished(
            "stopped",
            state.step,
            saved.path if isinstance(saved, Saved) else None,
            f"Stopped after step {state.step} of {self.plan.steps}; the same command with --resume goes on from there.",
        )

    def _failed(self, state: TrainingState) -> Finished:
        path = self.plan.files.checkpoint(state.step) if state.step else None
        kept = f"{path} holds the last good weights, of step {state.step}" if path else "nothing was learnt yet"
        return Finished(
            "failed",
            state.step,
            path,
            f"Stopped: the loss or its gradient was not a finite number three times in a row; {kept}. "
            "Lower learning_rate, or use mixed_precision: no.",
        )

    def _write(self, path: Path, state: TrainingState) -> None:
        """The LoRA before the state: a run killed in between resumes from the older state and writes the same again."""
        plan = self.plan
        write_lora(
            path,
            state.network,
            kohya_name=self.base.kohya_name,
            metadata=lora_metadata(plan, path.stem, state.step),
            precision=plan.config.output.precision,
        )
        write_state(plan.files, state, resumable_facts(plan))
        prune(plan.files, plan.config.output.keep_last)
