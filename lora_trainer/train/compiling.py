"""torch.compile, tried on the run's own heaviest step and kept where it is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import torch
from torch import nn

from lora_trainer.contracts import Control, Event, Told
from lora_trainer.train.told import in_words
from lora_trainer.train.turns import Exclusive, in_turn

PAYS = 0.97  # of the plain step's seconds: what is less than a few hundredths faster is chance
_ROUNDS = 2  # steps measured of either; the faster counts


def try_compiled(
    blocks: Sequence[nn.Module], step: Callable[[], object], exclusive: Exclusive, control: Control,
    device: torch.device,
) -> Generator[Event, None, None]:
    """Compile the blocks if the step is faster with it, and say so; else leave them as they were and say why.

    Block by block (regional compilation): blocks of one kind share what was compiled, which the whole model could not.
    """

    def timed() -> float:
        took: list[float] = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(time.perf_counter() - began)
        return min(took)

    def compare() -> str:
        plain = timed()
        began = time.perf_counter()
        step_failed = _compiled(blocks, step)
        if step_failed:
            return step_failed
        spent = time.perf_counter() - began
        fast = timed()
        if fast <= plain * PAYS:
            return ""
        _as_before(blocks)
        return f"a step takes {fast:.2f} s with it and {plain:.2f} s without, after {spent:.0f} s of compiling"

    if not hasattr(nn.Module, "compile"):
        yield Told(f"The model is not compiled: torch {torch.__version__} is too old for it.", "warning")
        return
    why_not = yield from in_turn(exclusive, control, compare)
    if why_not:
        yield Told(f"The model is not compiled: {why_not}.", "warning")
    elif why_not is not None:
        yield Told("The model is compiled: it is faster so.")


def _compiled(blocks: Sequence[nn.Module], step: Callable[[], object]) -> str:
    """Why it cannot be, the blocks being as before; empty when a step went through."""
    try:
        for block in blocks:
            cast(Any, block).compile()
        step()
    except Exception as error:  # whatever a compiler, a linker or a driver raises: without it the run goes on
        _as_before(blocks)
        return in_words(error).rstrip(".")
    return ""


def _as_before(blocks: Sequence[nn.Module]) -> None:
    for block in blocks:
        cast(Any, block)._compiled_call_impl = None
