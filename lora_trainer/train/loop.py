"""The one training loop. It knows batches, a loss, parameters and orders; everything else happens elsewhere."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (torch and accelerate are typed in part)

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, cast

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
)  # fmt: skip
from lora_trainer.train.memory import is_out_of_memory, peak_memory
from lora_trainer.train.optimizers import Updater
from lora_trainer.train.processes import Processes
from lora_trainer.train.state import TrainingState, capture, restore
from lora_trainer.train.turns import Exclusive, in_turn

SKIPS_ALLOWED = 3  # non-finite steps in a row before the run is given up: one may be chance, three are not


@dataclass(frozen=True)
class Pace:
    """How long, and how often what."""

    steps: int
    accumulation: int  # micro-batches of each process in one step
    max_gradient_norm: float  # 0: not clipped
    save_every: int  # steps; 0: never
    sample_every: int  # steps; 0: never


@dataclass(frozen=True)
class Work:
    """What the loop works with."""

    batches: Batches
    loss: Loss
    network: Network
    updater: Updater
    control: Control
    processes: Processes
    exclusive: Exclusive
    save: Callable[[TrainingState], Saved | Told | None]  # writes a checkpoint; None in processes that do not write
    sample: Callable[[int], Sampled | None]  # draws with the weights of the moment


class Outcome(NamedTuple):
    kind: Literal["done", "stopped", "diverged", "out of memory"]
    state: TrainingState  # what to keep: of the last whole step, or of the last good checkpoint if it diverged


def fit(pace: Pace, work: Work, start: int = 0) -> Generator[Event, None, Outcome]:
    """Train from `start` steps done to `pace.steps`; yields events, returns how it ended.

    Stops between two steps. A step whose loss or gradient is not finite changes nothing; after SKIPS_ALLOWED of them
    in a row the network is put back to the last saved moment and the run has diverged. Running out of memory loses
    nothing but the step under way.
    """
    yield Started(start, pace.steps)
    good = capture(start, work.network, work.updater)
    skipped = 0
    for step in range(start, pace.steps):
        orders = yield from _orders(work, step)
        if work.processes.any(orders.stop):
            return Outcome("stopped", capture(step, work.network, work.updater))
        try:
            result = yield from in_turn(work.exclusive, work.control, partial(_one_step, pace, work, step))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return Outcome("out of memory", capture(step, work.network, work.updater))
        if result is None:
            return Outcome("stopped", capture(step, work.network, work.updater))
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
            yield result
        last = done == pace.steps
        if not skipped and not last and (orders.save or _due(done, pace.save_every)):
            state = capture(done, work.network, work.updater)
            said = work.save(state)
            if said:
                yield said
            if not isinstance(said, Told):
                good = state
        if orders.sample or last or _due(done, pace.sample_every):
            drawn = yield from in_turn(work.exclusive, work.control, partial(work.sample, done))
            if drawn:
                yield drawn
    return Outcome("done", capture(pace.steps, work.network, work.updater))


def _orders(work: Work, step: int) -> Generator[Event, None, Orders]:
    """The orders for the next step; those given in a pause are carried out in it, with the weights of `step` steps."""
    while True:
        work.control.wait_while_paused()
        orders = work.control.take()
        if orders.stop or not work.control.paused():
            return orders
        said = work.save(capture(step, work.network, work.updater)) if orders.save and step else None
        if said:
            yield said
        if orders.sample:
            drawn = yield from in_turn(work.exclusive, work.control, partial(work.sample, step))
            if drawn:
                yield drawn


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _one_step(pace: Pace, work: Work, step: int) -> Stepped | Skipped:
    began = time.perf_counter()
    updater, processes = work.updater, work.processes
    updater.zero()
    total = torch.zeros((), device=processes.device)
    for micro in range(pace.accumulation):
        # Process p takes every p-th micro-batch, so that P processes see what one sees with P times the accumulation.
        index = (step * pace.accumulation + micro) * processes.count + processes.rank
        loss = work.loss(work.batches(index)) / pace.accumulation
        updater.backward(loss)
        total += loss.detach()
    gradients = updater.gradients()
    processes.average([*gradients, total])
    limit = pace.max_gradient_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(updater.parameters, limit)
    # The step's only wait for the device.
    loss_value, norm_value = cast(list[float], torch.stack([total, norm.to(total.device)]).tolist())
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)
    rates = updater.update(step, finite)
    if not finite:
        return Skipped(step + 1, pace.steps, loss_value, in_a_row=0)
    seconds = time.perf_counter() - began
    return Stepped(step + 1, pace.steps, loss_value, rates, norm_value, seconds, peak_memory(processes.device))
