"""The one training loop. It knows batches, a loss, parameters and orders; everything else happens elsewhere."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (torch and accelerate are typed in part)

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

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
from lora_trainer.train.memory import is_out_of_memory, let_go
from lora_trainer.train.optimizers import Updater
from lora_trainer.train.pieces import Pieces
from lora_trainer.train.processes import Processes
from lora_trainer.train.reading import Numbers, Reading, on_their_way
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

    def due(self, done: int) -> bool:
        """Whether anything is to be done after `done` steps."""
        return any(_due(done, every) for every in (self.save_every, self.sample_every, self.validate_every))


# Given the steps done and the error: says what it does, returns whether the step may be tried again.
Relief = Callable[[int, BaseException], Generator[Event, None, bool]]


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
    pieces: Callable[[Any], list[tuple[Any, float]]] = field(default_factory=Pieces)  # of a micro-batch, with shares
    relieve: Relief | None = None  # what to do where memory does not suffice; None: the run ends
    measures: Callable[[], Iterable[str]] = tuple  # what was done about it so far, for the state


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
    reading = Reading(work.updater.overflow_is_curable, work.watch.stepped if work.watch else lambda loss: None)
    step, owed = start, Orders()
    while step < pace.steps:
        if work.control.paused():
            yield from reading.finish()
        orders = yield from _orders(work, step)
        orders = Orders(orders.stop, orders.save or owed.save, orders.sample or owed.sample)
        if work.processes.any(orders.stop):
            yield from reading.finish()
            return Outcome("stopped", _captured(work, step))
        try:
            result = yield from _tried(pace, work, step)
        except _Unfinished as broken:
            yield from reading.finish()
            if not is_out_of_memory(broken.error):
                raise StepBroken(_captured(work, step)) from broken.error
            if broken.half_done:  # some of the weights may be a step ahead
                restore(good, work.network, work.updater)
                if work.watch:
                    work.watch.load(good.course)
            back = good.step if broken.half_done else step
            if not (yield from _relieved(work, step, back, broken.error)):
                return Outcome("out of memory", good if broken.half_done else _captured(work, step))
            step, owed = back, orders
            continue
        if result is None:
            yield from reading.finish()
            return Outcome("stopped", _captured(work, step))
        done = step + 1
        last = done == pace.steps
        yield from reading.take(result, now=last or orders.save or orders.sample or pace.due(done))
        skipped = reading.skipped
        if skipped >= SKIPS_ALLOWED:
            restore(good, work.network, work.updater)
            return Outcome("diverged", good)
        if not skipped and (last or _due(done, pace.validate_every)) and (yield from _validated(pace, work, done)):
            last = True
        if not skipped and not last and (orders.save or _due(done, pace.save_every)):
            good = (yield from _save(work, done)) or good
        if orders.sample or last or _due(done, pace.sample_every):
            yield from sampled(work, done)
        if last and done < pace.steps:
            return Outcome("no better", _captured(work, done))
        step, owed = done, Orders()
    return Outcome("done", _captured(work, pace.steps))


def _tried(pace: Pace, work: Work, step: int) -> Generator[Event, None, Numbers | Stepped | Skipped | None]:
    """One step in its turn; memory that fails on the way there leaves the step undone too."""
    try:
        return (yield from in_turn(work.exclusive, work.control, partial(_one_step, pace, work, step)))
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise _Unfinished(error) from error
        raise


def _relieved(work: Work, step: int, back: int, error: BaseException) -> Generator[Event, None, bool]:
    """Whether the run may go on after `back` steps, since something was done about the memory."""
    if not work.relieve or not (yield from work.relieve(step, error)):
        return False
    if back < step:
        yield Told(f"The update was broken off half-way; the steps from {back + 1} on are done again.", "warning")
    return True


def _captured(work: Work, step: int) -> TrainingState:
    """The state after `step` steps; a copy for which there is no room at first gets a second try."""
    try:
        state = capture(step, work.network, work.updater)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        let_go(work.processes.device, error)
        state = capture(step, work.network, work.updater)
    course = work.watch.state() if work.watch else state.course
    return replace(state, measures=tuple(work.measures()), course=course)


def _validated(pace: Pace, work: Work, step: int) -> Generator[Event, None, bool]:
    """Look at what is held out; whether patience has run out. One look that fails must not cost the training."""
    if not pace.validate_every:
        return False
    if work.validation and work.watch:
        try:
            yield from _look(work, work.validation, work.watch, step)
        except Exception as error:
            _log.warning("A look at the held-out data failed.", exc_info=error)
            text = f"The held-out data were not looked at after step {step}, the training goes on: {in_words(error)}"
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
        yield Told(f"The loss on the held-out data after step {step} is not a finite number.", "warning")
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
            yield from _save(work, step)
        if orders.sample:
            yield from sampled(work, step)


def _save(work: Work, step: int) -> Generator[Event, None, TrainingState | None]:
    """What was saved, or None; a checkpoint that fails must not cost the training."""
    state = None
    try:
        state = _captured(work, step)
        said = work.save(state)
    except Exception as error:
        _log.warning("A checkpoint failed.", exc_info=error)
        said = Told(f"Step {step} was not saved, the training goes on: {in_words(error)}", "warning")
    if said:
        yield said
    return None if isinstance(said, Told) else state


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


def _one_step(pace: Pace, work: Work, step: int) -> Numbers | Stepped | Skipped:
    """Gradients and update; the step's numbers as they are on their way, where the optimizer needs no word of them."""
    began = time.perf_counter()
    updater = work.updater
    late = updater.decides_itself
    try:
        values = _gradients(pace, work, step)
        finite = torch.isfinite(values).all()
        told = finite if late else bool(finite)  # the latter waits for the device
    except Exception as error:  # whatever it is: the weights are still those of the last whole step, and can be saved
        raise _Unfinished(error) from error
    try:
        rates = updater.update(step, told)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _Unfinished(error, half_done=True) from error
        raise
    numbers = Numbers(step + 1, pace.steps, rates, began, work.processes.device, *on_their_way(values))
    return numbers if late else numbers.read(began)


def _gradients(pace: Pace, work: Work, step: int) -> Tensor:
    """Accumulate and clip the gradients of one step; (2,), its loss and the norm before clipping, on the device."""
    updater, processes = work.updater, work.processes
    updater.zero()
    total = torch.zeros((), device=processes.device)
    starved: Exception | None = None
    try:
        for micro in range(pace.accumulation):
            # Process p takes every p-th micro-batch: P processes see what one sees with P times the accumulation.
            index = (step * pace.accumulation + micro) * processes.count + processes.rank
            for piece, share in work.pieces(work.batches(index)):
                loss = work.loss(piece) * share / pace.accumulation
                updater.backward(loss)
                total += loss.detach()
    except (RuntimeError, MemoryError, OSError) as error:
        if processes.count == 1 or not is_out_of_memory(error):
            raise
        starved = error
    if processes.any(starved is not None):  # where one lacks the memory none goes on to where all meet
        raise starved or MemoryError("another process lacks the memory")
    processes.average([*updater.gradients(), total])
    limit = pace.max_gradient_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(updater.parameters, limit)
    return torch.stack([total, norm.to(total.device)])


class _Unfinished(Exception):
    """An error on the way to a step's gradients, or within its update."""

    def __init__(self, error: Exception, *, half_done: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.half_done = half_done
