"""Taking turns: work done while the device and the lent model are ours, waiting while the model is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TypeVar

from lora_trainer.contracts import Control, ModelAway, Told

Result = TypeVar("Result")
Exclusive = Callable[[], AbstractContextManager[None]]  # the right to use the device, for one piece of work at a time

LOOK_AGAIN = 0.5  # seconds between two looks for a model that is away


def in_turn(exclusive: Exclusive, control: Control, work: Callable[[], Result]) -> Generator[Told, None, Result | None]:
    """What `work` returns, done once while the device is held; None if stop was ordered while the model was away.

    The work is begun anew when the model is back, so it must change nothing before it is done.
    """
    away = False
    while True:
        try:
            with exclusive():
                result = work()
        except ModelAway as gone:
            if not away:
                yield Told(f"Waiting: {gone}", "warning")
            away = True
        else:
            if away:
                yield Told("The model is back; the training goes on.")
            return result
        if control.stopped():
            return None
        time.sleep(LOOK_AGAIN)
