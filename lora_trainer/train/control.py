"""Orders from any thread to the loop; taken between two steps."""

from __future__ import annotations

import threading

from lora_trainer.contracts import Orders

_LOOK_EVERY = 0.2  # seconds; an Event cannot be waited for together with others


class Controls:
    """Implements `contracts.Control`; every method may be called from any thread and from a signal handler."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._save = threading.Event()
        self._sample = threading.Event()
        self._running = threading.Event()
        self._running.set()

    def stop(self) -> None:
        """End after the step under way; what was learnt is saved. Ends a pause too."""
        self._stop.set()
        self._running.set()

    def pause(self) -> None:
        self._running.clear()

    def go_on(self) -> None:
        self._running.set()

    def save_now(self) -> None:
        self._save.set()

    def sample_now(self) -> None:
        self._sample.set()

    def take(self) -> Orders:
        """The orders given since the last call; `save` and `sample` are handed out once."""
        orders = Orders(self._stop.is_set(), self._save.is_set(), self._sample.is_set())
        if orders.save:
            self._save.clear()
        if orders.sample:
            self._sample.clear()
        return orders

    def stopped(self) -> bool:
        return self._stop.is_set()

    def paused(self) -> bool:
        return not self._running.is_set()

    def wait_while_paused(self) -> None:
        """Return when the run may go on, or when there is an order to be carried out in the pause."""
        while not self._running.wait(_LOOK_EVERY):
            if self._save.is_set() or self._sample.is_set():
                return
