"""A run from the first image to the written LoRA: the composition root, where all rooms meet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from lora_trainer.config.options import RunConfig
from lora_trainer.config.tasks import TEXT
from lora_trainer.contracts import Control, Event, Finished, Host, PlainError, Told
from lora_trainer.jobs.checkpoints import SavedRun, newest_state
from lora_trainer.jobs.fetching import language_model_fetched
from lora_trainer.jobs.host_control import HostControl
from lora_trainer.jobs.image_run import ImageRun
from lora_trainer.jobs.plan import Plan, files_asked_for, plan_run
from lora_trainer.jobs.planned import RunPlan
from lora_trainer.jobs.readied import Preparation, Readied
from lora_trainer.jobs.recipe import resumable_facts, what_changed, write_recipe
from lora_trainer.jobs.record import recorded
from lora_trainer.jobs.writer import Writer
from lora_trainer.train.compiling import try_compiled
from lora_trainer.train.control import Controls
from lora_trainer.train.ladder import Ladder
from lora_trainer.train.loop import Outcome, Pace, StepBroken, Work, fit, sampled
from lora_trainer.train.optimizers import RatePlan, Updater
from lora_trainer.train.processes import AcceleratedProcesses, OneProcess, Processes
from lora_trainer.train.rehearsal import Rehearsal, make_fit
from lora_trainer.train.state import restore
from lora_trainer.train.watch import Watch
from lora_trainer.weights.write import remove_leftovers, why_not_written

__all__ = ["Controls", "run"]

_NOTHING_DONE = Finished("stopped", 0, None, "Stopped before the first step; nothing was trained.")


def run(config: RunConfig, *, host: Host, control: Control, resume: bool = False) -> Iterator[Event]:
    """Train, and yield what happens; the last event is `Finished`. Raises PlainError for bad input.

    Whatever was borrowed (the host's weights, its device, the layers put on) is given back when the iterator ends,
    is closed or fails.
    """
    if config.task == TEXT and config.model.download:
        for event in language_model_fetched(config.model.base, host.paths(), control):
            host.report(event)
            yield event
        if control.stopped():
            yield _NOTHING_DONE
            return
    processes = _processes(host)
    saved, told = newest_state(files_asked_for(config, host)) if resume else (None, [])
    if saved and config.train.seed is None:
        config = replace(config, train=replace(config.train, seed=saved.facts["seed"]))
    plan = plan_run(config, host, resume=resume, processes=processes.count, device=processes.device)
    job = _Job(plan, host, HostControl(control, host), processes, saved)
    events = job.events([*told, *_about_resuming(resume, saved, plan), *plan.notes])
    if processes.rank > 0:
        yield from events
    else:
        yield from recorded(plan, events)


def _processes(host: Host) -> Processes:
    """Several processes only where `accelerate launch` started them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return AcceleratedProcesses()
    return OneProcess(host.device())


def _about_resuming(resume: bool, saved: SavedRun | None, plan: RunPlan) -> list[str]:
    if not resume:
        return []
    if saved is None:
        return [f"Nothing to resume in {plan.files.folder}: starting at the beginning."]
    changes = what_changed(saved.facts, resumable_facts(plan))
    return [f"Going on from step {saved.state.step} of {plan.steps}.", *changes]


@dataclass
class _Job:
    plan: RunPlan
    host: Host
    control: HostControl
    processes: Processes
    saved: SavedRun | None

    def events(self, notes: Iterable[str]) -> Iterator[Event]:
        for note in notes:
            yield Told(note, "warning")
        with self.host.visit():
            for event in self._course():
                self.host.report(event)
                yield event

    def _course(self) -> Iterator[Event]:
        with ExitStack() as borrowed:
            readied = yield from self._preparation().ready(borrowed)
            if readied is None:
                yield _NOTHING_DONE
                return
            if self._writes:  # not sooner: a run that is refused leaves no folder behind
                for folder in {self.plan.files.folder, self.plan.files.work}:
                    _made_ready(folder)
                write_recipe(self.plan)
            yield from self._train(readied)

    def _preparation(self) -> Preparation:
        """What this kind of run needs before its first step."""
        begins = self.saved is None
        if isinstance(self.plan, Plan):
            return ImageRun(self.plan, self.host, self.control, begins)
        from lora_trainer.jobs.text_plan import TextPlan
        from lora_trainer.jobs.text_run import TextRun

        assert isinstance(self.plan, TextPlan)
        return TextRun(self.plan, self.host, self.control, begins)

    @property
    def _writes(self) -> bool:
        return self.processes.rank == 0

    def _train(self, readied: Readied) -> Iterator[Event]:
        plan, config = self.plan, self.plan.config.train
        network, sampler = readied.network, readied.sampler
        updater = Updater(
            network.groups(), RatePlan(plan.rates, plan.schedule), weight_decay=config.weight_decay,
            scale_loss=plan.dtype == torch.float16, options=plan.config.optimizer, ema=config.ema,
        )  # fmt: skip
        if updater.average:
            size = updater.average.bytes / 2**20
            yield Told(f"A moving average of the weights is kept, {size:.1f} MiB more; it is what is saved and shown.")
        if self.saved:
            restore(self.saved.state, network, updater)
        start = self.saved.state.step if self.saved else 0
        watch = Watch(plan.config.validation.patience) if readied.validation and self._writes else None
        if watch and self.saved:
            watch.load(self.saved.state.course)
        writer = Writer(plan, readied.output) if self._writes else None
        ladder = readied.ladder or Ladder(plan.device, ())
        for measure in ladder.again(self.saved.state.measures if self.saved else ()):
            yield Told(f"As before the pause: {measure}.")
        copies = readied.copies
        if readied.heaviest:
            rehearsal = Rehearsal(
                readied.heaviest, readied.heaviest_told, readied.loss, readied.pieces, updater, self.processes
            )
            measured = yield from make_fit(rehearsal, ladder, readied.exclusive, self.control, plan.smaller)
            if measured is None:
                yield _NOTHING_DONE
                return
            if copies and self.saved:
                yield from copies.again(self.saved.state.measures)
            elif copies:
                yield from copies.decide(measured, plan.steps)
            if config.compile:
                step, exclusive = rehearsal.measure, readied.exclusive
                yield from try_compiled(readied.blocks, step, exclusive, self.control, plan.device)
        work = Work(
            batches=readied.batches, loss=readied.loss, network=network, updater=updater, control=self.control,
            processes=self.processes, exclusive=readied.exclusive,
            save=writer.checkpoint if writer else lambda state: None,
            sample=sampler.draw if writer else lambda step: None,
            pieces=readied.pieces, relieve=ladder.relieve,
            measures=lambda: (*ladder.taken, *(copies.measures() if copies else ())),
            validation=readied.validation if writer else None, watch=watch,
            keep_best=writer.keep_best if writer else lambda state: None,
        )  # fmt: skip
        pace = Pace(
            plan.steps, config.gradient_accumulation_steps, config.max_gradient_norm, plan.save_every,
            plan.sample_every if sampler.wanted else 0, plan.validate_every,
        )  # fmt: skip
        if start == 0 and writer and sampler.wanted:
            yield from sampled(work, 0)
        try:
            outcome = yield from ladder.overheard(fit(pace, work, start))
        except StepBroken as broken:
            if writer and broken.state.step > start:
                yield from writer.keep(plan.files.checkpoint(broken.state.step), broken.state)
            raise broken.__cause__ or broken from None
        if writer:
            yield from writer.finish(outcome)
        else:
            yield Finished(
                _outcome(outcome), outcome.state.step, None, ""
            )


def _outcome(outcome: Outcome) -> Literal["done", "stopped", "failed"]:
    kinds: dict[str, Literal["done", "stopped"]] = {"done": "done", "no better": "done", "stopped": "stopped"}
    return kinds.get(outcome.kind, "failed")


def _made_ready(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    except OSError as error:
        raise PlainError(why_not_written(folder, error)) from error
