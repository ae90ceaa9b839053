"""A run from the first image to the written LoRA: the composition root, where all rooms meet."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import (
    BaseModel,
    Control,
    Event,
    Finished,
    Host,
    ModelAway,
    Network,
    PlainError,
    Told,
)
from lora_trainer.families.frozen_convolution import hasten
from lora_trainer.jobs.checkpoints import SavedRun, newest_state
from lora_trainer.jobs.host_control import HostControl
from lora_trainer.jobs.plan import Plan, files_asked_for, plan_run
from lora_trainer.jobs.readers import unheard
from lora_trainer.jobs.recipe import resumable_facts, what_changed, write_recipe
from lora_trainer.jobs.record import recorded
from lora_trainer.jobs.samples import SampleMaker, sample_order
from lora_trainer.jobs.start import starting_weights
from lora_trainer.jobs.writer import Writer
from lora_trainer.networks.network import inject
from lora_trainer.train.control import Controls
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.loop import Pace, StepBroken, Work, fit, sampled
from lora_trainer.train.optimizers import RatePlan, Updater
from lora_trainer.train.processes import AcceleratedProcesses, OneProcess, Processes
from lora_trainer.train.state import restore
from lora_trainer.train.told import in_words
from lora_trainer.train.turns import Exclusive, in_turn
from lora_trainer.weights.write import remove_leftovers, why_not_written

__all__ = ["Controls", "run"]

_log = logging.getLogger(__name__)

_NOTHING_DONE = Finished("stopped", 0, None, "Stopped before the first step; nothing was trained.")


def run(config: RunConfig, *, host: Host, control: Control, resume: bool = False) -> Iterator[Event]:
    """Train, and yield what happens; the last event is `Finished`. Raises PlainError for bad input.

    Whatever was borrowed (the host's weights, its device, the layers put on) is given back when the iterator ends,
    is closed or fails.
    """
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


def _about_resuming(resume: bool, saved: SavedRun | None, plan: Plan) -> list[str]:
    if not resume:
        return []
    if saved is None:
        return [f"Nothing to resume in {plan.files.folder}: starting at the beginning."]
    changes = what_changed(saved.facts, resumable_facts(plan))
    return [f"Going on from step {saved.state.step} of {plan.steps}.", *changes]


@dataclass
class _Job:
    plan: Plan
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
        plan = self.plan
        with ExitStack() as borrowed:
            base = yield from self._prepare()
            borrowed.callback(self.control.forget_base)
            if base is None or not (yield from self._add_unet(base)):
                yield _NOTHING_DONE
                return
            options = replace(plan.config.network, alpha=plan.alpha)
            network = yield from in_turn(
                self._exclusive(base),
                self.control,
                lambda: inject(base.parts, options, train_parts=list(plan.rates), seed=plan.seed),
            )
            if network is None:
                yield _NOTHING_DONE
                return
            borrowed.callback(network.eject)
            yield from (Told(note, "warning") for note in unheard(plan.family.name, network.state()))
            if plan.config.network.start_from and not self.saved:
                told = yield from in_turn(
                    self._exclusive(base), self.control, lambda: starting_weights(plan, network)
                )
                yield from told or ()
            if self._writes:  # not sooner: a run that is refused leaves no folder behind
                for folder in {plan.files.folder, plan.files.work}:
                    _made_ready(folder)
                write_recipe(plan)
            yield from self._train(base, network)

    @property
    def _writes(self) -> bool:
        return self.processes.rank == 0

    def _prepare(self) -> Generator[Event, None, BaseModel | None]:
        """Fill the caches; returns a base of the parts that stay for the training, or None when stopped."""
        plan = self.plan
        parts = ["vae", *plan.family.text_parts]
        base = yield from self._adopted(parts)
        if base is None:
            return None
        frozen_text = not any(part in plan.rates for part in plan.family.text_parts)
        encode_text = (lambda captions: base.encode_text(captions, plan.clip_skip)) if frozen_text else None
        exclusive = self._exclusive(base)
        fingerprint = yield from in_turn(exclusive, self.control, lambda: base.fingerprint("vae"))
        work = plan.data.prepare(base.encode_images, encode_text, fingerprint=fingerprint or "")
        while event := (yield from in_turn(exclusive, self.control, lambda: next(work, None))):
            yield event
            if self.control.take().stop:
                return None
        if self.control.stopped():
            return None
        draws = bool(plan.config.samples.prompts) and not self.host.draws
        keeps_text = not frozen_text or draws or plan.data.encodes_while_training
        keeps_vae = draws or plan.config.data.cache == "none"
        if not keeps_text:
            base.release(*plan.family.text_parts)
        if not keeps_vae:
            base.release("vae")
        return base

    def _adopted(self, parts: Sequence[str]) -> Generator[Event, None, BaseModel | None]:
        plan = self.plan

        def adopt() -> BaseModel:
            base = plan.family.adopt(plan.lent, plan.device, plan.dtype, parts)
            if self.host.contended():
                base.let_go()
            return base

        return (yield from in_turn(lambda: self.host.exclusive(plan.lent, parts), self.control, adopt))

    def _add_unet(self, base: BaseModel) -> Generator[Event, None, bool]:
        """Whether it was added; not when stop was ordered."""
        with_unet = yield from self._adopted(["unet"])
        if with_unet is None:
            return False
        base.join(with_unet)
        if self.plan.device.type == "cpu":
            hasten(base.parts["unet"])
        return True

    def _proof(self, exclusive: Exclusive, lora: Path) -> list[Told]:
        """What the host's own loader makes of the LoRA; the work is saved, so nothing here can fail the run."""
        try:
            with exclusive():
                return self.host.prove(lora, sample_order(self.plan))
        except ModelAway as error:
            return [Told(f"The WebUI's own loader was not asked to read the LoRA: {error}", "warning")]
        except Exception as error:
            _log.warning("The proof failed.", exc_info=error)
            return [Told(f"The LoRA is saved, but the WebUI could not try it: {in_words(error)}", "warning")]

    def _exclusive(self, base: BaseModel) -> Exclusive:
        """The device and the base's parts as the host has them now; whoever waits for them gets them undivided."""

        @contextmanager
        def held() -> Iterator[None]:
            if self.host.contended():
                base.let_go()
            with self.host.exclusive(self.plan.lent, tuple(base.parts)):
                base.take_back()
                try:
                    yield
                finally:
                    if self.host.contended():
                        base.let_go()

        self.control.base = base
        return held

    def _train(self, base: BaseModel, network: Network) -> Iterator[Event]:
        plan, config = self.plan, self.plan.config.train
        if config.gradient_checkpointing:
            _checkpoint_activations(base, plan.rates)
        rates = RatePlan(plan.rates, config.schedule, plan.steps, plan.warmup_steps)
        updater = Updater(
            network.groups(), rates, weight_decay=config.weight_decay,
            scale_loss=plan.dtype == torch.float16,
        )  # fmt: skip
        if self.saved:
            restore(self.saved.state, network, updater)
        start = self.saved.state.step if self.saved else 0
        maker = SampleMaker(plan, base, network, self.host)
        writer = Writer(plan, base, self.host) if self._writes else None
        exclusive = self._exclusive(base)
        work = Work(
            batches=plan.data, loss=_loss(plan, base, network), network=network, updater=updater, control=self.control,
            processes=self.processes, exclusive=exclusive,
            save=writer.checkpoint if writer else lambda state: None,
            sample=maker.draw if writer else lambda step: None,
        )  # fmt: skip
        pace = Pace(
            plan.steps, config.gradient_accumulation_steps, config.max_gradient_norm, plan.save_every,
            plan.sample_every if maker.wanted else 0,
        )  # fmt: skip
        if start == 0 and writer and maker.wanted:
            yield from sampled(work, 0)
        try:
            outcome = yield from fit(pace, work, start)
        except StepBroken as broken:
            if writer and broken.state.step > start:
                yield from writer.keep(plan.files.checkpoint(broken.state.step), broken.state)
            raise broken.__cause__ or broken from None
        if writer:
            yield from writer.finish(outcome, lambda path: self._proof(exclusive, path))
        else:
            yield Finished(
                outcome.kind if outcome.kind in ("done", "stopped") else "failed", outcome.state.step, None, ""
            )


def _loss(plan: Plan, base: BaseModel, network: Network) -> DiffusionLoss:
    return DiffusionLoss(
        base, plan.seed, plan.clip_skip, plan.config.train.min_snr_gamma, plan.config.train.noise_offset,
        network,
    )  # fmt: skip


def _made_ready(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    except OSError as error:
        raise PlainError(why_not_written(folder, error)) from error


def _checkpoint_activations(base: BaseModel, parts: Iterable[str]) -> None:
    """Recompute activations in the backward pass. diffusers and transformers do so in training mode only; the mode
    changes nothing else, since none of the parts has dropout or batch statistics."""
    for part in parts:
        module: Any = base.parts[part]
        enable = getattr(module, "enable_gradient_checkpointing", None) or module.gradient_checkpointing_enable
        enable()
        module.train()
