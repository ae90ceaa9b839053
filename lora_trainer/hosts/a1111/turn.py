"""The WebUI's queue lock, taken by the step: whoever generates waits for a step, and we wait for the generation."""

from __future__ import annotations

import time
from threading import get_ident
from types import TracebackType
from typing import Any

LET_PASS = 0.1  # seconds; a thread that was woken needs some milliseconds to take what it waited for
GLANCE = 0.0005  # seconds between two looks whether it has


class Turn:
    """`with turn:` holds the WebUI's queue lock; entered again by the thread that holds it, it does nothing."""

    def __init__(self, queue_lock: Any) -> None:
        """`queue_lock` is `modules.call_queue.queue_lock`, a FIFOLock."""
        self._lock = queue_lock
        self._holder: int | None = None  # thread
        self._depth = 0

    def __enter__(self) -> None:
        if self._holder != get_ident():
            self._lock.acquire()
            self._holder = get_ident()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._holder = None
            waited_for = self._waited_for()
            self._lock.release()
            if waited_for:
                self._let_pass()

    def contended(self) -> bool:
        """Whether another thread holds the lock or waits for it."""
        return self._waited_for() or (self._lock._lock.locked() and self._holder != get_ident())

    def _waited_for(self) -> bool:
        return bool(self._lock._pending_threads)

    def _let_pass(self) -> None:
        """Wait until the woken thread has the lock. FIFOLock only wakes it: one that asks again at once, as a training
        does, would be quicker, and a generation would starve."""
        deadline = time.monotonic() + LET_PASS
        while not self._lock._lock.locked() and time.monotonic() < deadline:
            time.sleep(GLANCE)
