"""Writes what a run has learnt, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.contracts import BaseModel, Event, Finished, Host, PlainError, Saved, Told
from lora_trainer.jobs.card import write_card
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
        self.host.announce(path)
        return Saved(state.step, path, final=False)

    def finish(self, outcome: Outcome, prove: Callable[[Path], Iterable[Told]]) -> Iterator[Event]:
        """Keep the outcome and end with `Finished`. Raises PlainError where the finished LoRA cannot be written.

        `prove` lets the host read what was written; what it says is told before the end.
        """
        state, files = outcome.state, self.plan.files
        if outcome.kind == "diverged":
            yield self._diverged(state)
        elif outcome.kind != "done":
            yield from self._ended_early(outcome)
        else:
            self._write(files.lora, state)
            yield Saved(state.step, files.lora, final=True)
            yield from write_card(self.plan, self.host.paths())
            self.host.announce(files.lora)
            yield from prove(files.lora)
            yield Finished("done", state.step, files.lora, f"Done: {files.lora}")

    def _ended_early(self, outcome: Outcome) -> Iterator[Event]:
        step, steps = outcome.state.step, self.plan.steps
        kind, why, how = "stopped", "Stopped", "resume (train --resume) goes on from there"
        if outcome.kind == "out of memory":
            kind, why, how = "failed", f"Out of memory on {self.plan.device}", f"{self._advice()}, then resume (train --resume)"
        if step == 0:
            yield Finished(kind, 0, None, f"{why} before the first step was done; nothing was trained yet; {how}.")
            return
        saved = self.checkpoint(outcome.state)
        yield saved
        path = saved.path if isinstance(saved, Saved) else None
        yield Finished(kind, step, path, f"{why} after step {step} of {steps}; {how}.")

    def _advice(self) -> str:
        """The cheapest remedy that the configuration has not taken yet."""
        config, size = self.plan.config, self.plan.config.data.batch_size
        if not config.train.gradient_checkpointing:
            return "set train.gradient_checkpointing: true"
        if size > 1:
            doubled = config.train.gradient_accumulation_steps * 2
            return f"set batch_size: {size // 2} and gradient_accumulation_steps: {doubled}"
        return f"set a resolution below {self.plan.resolution}"

    def _diverged(self, state: TrainingState) -> Finished:
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
