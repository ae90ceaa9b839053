"""The one training loop. It knows batches, a loss, parameters and orders; everything else happens elsewhere."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (torch and accelerate are typed in part)

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch

from lora_trainer.contracts import (
    Batches,
    Control,
    Event,
    Loss,
    Network,
    Orders,
    Sampled,
    Saved,
    Skipped,
    Started,
    Stepped,
    Told,
    Validated,
    Validation,
)  # fmt: skip
from lora_trainer.train.memory import is_out_of_memory, peak_memory
from lora_trainer.train.optimizers import Updater
from lora_trainer.train.processes import Processes
from lora_trainer.train.state import TrainingState, capture, restore
from lora_trainer.train.told import in_words
from lora_trainer.train.turns import Exclusive, in_turn
from lora_trainer.train.watch import Watch

_log = logging.getLogger(__name__)

SKIPS_ALLOWED = 3  # non-finite steps in a row before the run is given up: one may be chance, three are not


@dataclass(frozen=True)
class Pace:
    """How long, and how often what."""

    steps: int
    accumulation: int  # micro-batches of each process in one step
    max_gradient_norm: float  # 0: not clipped
    save_every: int  # steps; 0: never
    sample_every: int  # steps; 0: never
    validate_every: int = 0  # steps; 0: never


@dataclass(frozen=True)
class Work:
    """What the loop works with."""

    batches: Batches[Any]
    loss: Loss[Any]
    network: Network
    updater: Updater
    control: Control
    processes: Processes
    exclusive: Exclusive
    save: Callable[[TrainingState], Saved | Told | None]  # writes a checkpoint; None in processes that do not write
    sample: Callable[[int], Sampled | None]  # draws with the weights of the moment
    validation: Validation | None = None  # None where nothing is held out, and in processes that do not write
    watch: Watch | None = None  # of the held-out loss; goes with `validation`
    keep_best: Callable[[TrainingState], Saved | Told | None] = lambda state: None


class StepBroken(Exception):
    """A step raised something unforeseen (its `__cause__`) before it changed anything; `state` is from before it."""

    def __init__(self, state: TrainingState) -> None:
        super().__init__(f"the step after {state.step} was broken off")
        self.state = state


class Outcome(NamedTuple):
    kind: Literal["done", "no better", "stopped", "diverged", "out of memory"]  # no better: patience has run out
    state: TrainingState  # what to keep: of the last whole step, or of the last good checkpoint if it diverged


def fit(pace: Pace, work: Work, start: int = 0) -> Generator[Event, None, Outcome]:
    """Train from `start` steps done to `pace.steps`; yields events, returns how it ended.

    Stops between two steps. A step whose loss or gradient is not finite changes nothing; after SKIPS_ALLOWED of them
    in a row the network is put back to the last saved moment and the run has diverged. Running out of memory loses
    nothing but the step under way; neither does any other failure, which raises StepBroken with what to save.
    """
    yield Started(start, pace.steps)
    if start == 0:
        yield from _validated(pace, work, 0)
    good = _captured(work, start)
    skipped = 0
    for step in range(start, pace.steps):
        orders = yield from _orders(work, step)
        if work.processes.any(orders.stop):
            return Outcome("stopped", _captured(work, step))
        try:
            result = yield from in_turn(work.exclusive, work.control, partial(_one_step, pace, work, step))
        except _Unfinished as unfinished:
            error, state = unfinished.error, _captured(work, step)
            if is_out_of_memory(error):
                return Outcome("out of memory", state)
            raise StepBroken(state) from error
        except (RuntimeError, MemoryError) as error:  # in the update: half of the weights may be a step ahead
            if not is_out_of_memory(error):
                raise
            return Outcome("out of memory", good)
        if result is None:
            return Outcome("stopped", _captured(work, step))
        done = step + 1
        if isinstance(result, Skipped):
            curable = math.isfinite(result.loss) and work.updater.overflow_is_curable()
            skipped += not curable
            yield replace(result, in_a_row=skipped)
            if skipped >= SKIPS_ALLOWED:
                restore(good, work.network, work.updater)
                return Outcome("diverged", good)
        else:
            skipped = 0
            if work.watch:
                work.watch.stepped(result.loss)
            yield result
        last = done == pace.steps
        if not skipped and (last or _due(done, pace.validate_every)) and (yield from _validated(pace, work, done)):
            last = True
        if not skipped and not last and (orders.save or _due(done, pace.save_every)):
            state = _captured(work, done)
            if (yield from _save(work, state)):
                good = state
        if orders.sample or last or _due(done, pace.sample_every):
            yield from sampled(work, done)
        if last and done < pace.steps:
            return Outcome("no better", _captured(work, done))
    return Outcome("done", _captured(work, pace.steps))


def _captured(work: Work, step: int) -> TrainingState:
    state = capture(step, work.network, work.updater)
    return replace(state, course=work.watch.state()) if work.watch else state


def _validated(pace: Pace, work: Work, step: int) -> Generator[Event, None, bool]:
    """Look at what is held out; whether patience has run out. One look that fails must not cost the training."""
    if not pace.validate_every:
        return False
    if work.validation and work.watch:
        try:
            yield from _look(work, work.validation, work.watch, step)
        except Exception as error:
            _log.warning("A look at the held-out images failed.", exc_info=error)
            text = f"The held-out images were not looked at after step {step}, the training goes on: {in_words(error)}"
            yield Told(text, "warning")
    return work.processes.any(bool(work.watch and work.watch.looks and work.watch.exhausted))


def _look(work: Work, validation: Validation, watch: Watch, step: int) -> Generator[Event, None, None]:
    rows: list[list[float]] = []
    for index in range(validation.count):  # a turn for each, so that nobody waits for all of them
        row = yield from in_turn(work.exclusive, work.control, partial(_measured, work, validation, index))
        if row is None:
            return
        rows.append(row)
    by_range = tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))
    loss = sum(by_range) / len(by_range)
    if not math.isfinite(loss):
        yield Told(f"The loss on the held-out images after step {step} is not a finite number.", "warning")
        return
    warning = watch.measured(step, loss)
    yield Validated(step, loss, by_range, watch.best.step)
    if warning:
        yield Told(warning, "warning")
    if step and watch.best.step == step and (kept := work.keep_best(_captured(work, step))):
        yield kept


def _measured(work: Work, validation: Validation, index: int) -> list[float]:
    with work.updater.shown():
        return validation.measure(index)


def _orders(work: Work, step: int) -> Generator[Event, None, Orders]:
    """The orders for the next step; those given in a pause are carried out in it, with the weights of `step` steps."""
    while True:
        work.control.wait_while_paused()
        orders = work.control.take()
        if orders.stop or not work.control.paused():
            return orders
        if orders.save and step:
            yield from _save(work, _captured(work, step))
        if orders.sample:
            yield from sampled(work, step)


def _save(work: Work, state: TrainingState) -> Generator[Event, None, bool]:
    """Whether the state was saved; a checkpoint that fails must not cost the training."""
    try:
        said = work.save(state)
    except Exception as error:
        _log.warning("A checkpoint failed.", exc_info=error)
        said = Told(f"Step {state.step} was not saved, the training goes on: {in_words(error)}", "warning")
    if said:
        yield said
    return not isinstance(said, Told)


def sampled(work: Work, step: int) -> Generator[Event, None, None]:
    """Pictures with the weights of `step` steps; one that fails must not cost the training."""
    try:
        drawn = yield from in_turn(work.exclusive, work.control, partial(_drawn, work, step))
    except Exception as error:
        _log.warning("Samples failed.", exc_info=error)
        remedy = " Lower samples.size, or draw none." if is_out_of_memory(error) else ""
        text = f"No samples were drawn at step {step}, the training goes on: {in_words(error)}{remedy}"
        yield Told(text, "warning")
    else:
        if drawn:
            yield drawn


def _drawn(work: Work, step: int) -> Sampled | None:
    with work.updater.shown():
        return work.sample(step)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _one_step(pace: Pace, work: Work, step: int) -> Stepped | Skipped:
    began = time.perf_counter()
    updater, processes = work.updater, work.processes
    try:
        loss_value, norm_value = _gradients(pace, work, step)
    except Exception as error:  # whatever it is: the weights are still those of the last whole step, and can be saved
        raise _Unfinished(error) from error
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)
    rates = updater.update(step, finite)
    if not finite:
        return Skipped(step + 1, pace.steps, loss_value, in_a_row=0)
    seconds = time.perf_counter() - began
    return Stepped(step + 1, pace.steps, loss_value, rates, norm_value, seconds, peak_memory(processes.device))


def _gradients(pace: Pace, work: Work, step: int) -> list[float]:
    """Accumulate and clip the gradients of one step; its loss, and the norm before clipping."""
    updater, processes = work.updater, work.processes
    updater.zero()
    total = torch.zeros((), device=processes.device)
    for micro in range(pace.accumulation):
        # Process p takes every p-th micro-batch, so that P processes see what one sees with P times the accumulation.
        index = (step * pace.accumulation + micro) * processes.count + processes.rank
        loss = work.loss(work.batches(index)) / pace.accumulation
        updater.backward(loss)
        total += loss.detach()
    processes.average([*updater.gradients(), total])
    limit = pace.max_gradient_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(updater.parameters, limit)
    # The step's only wait for the device.
    return cast(list[float], torch.stack([total, norm.to(total.device)]).tolist())


class _Unfinished(Exception):
    """An error on the way to a step's gradients."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
