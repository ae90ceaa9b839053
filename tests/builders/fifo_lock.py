"""A lock that behaves as the WebUI's own queue lock does."""

from __future__ import annotations

import threading
from collections import deque


class FIFOLock:
    """As A1111 v1.10.1's modules/fifo_lock.py behaves: a release wakes who waits longest, but hands nothing over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inner_lock = threading.Lock()
        self._pending_threads: deque[threading.Event] = deque()

    def acquire(self) -> bool:
        with self._inner_lock:
            if self._lock.acquire(False):
                return True
            woken = threading.Event()
            self._pending_threads.append(woken)
        woken.wait()
        return self._lock.acquire()

    def release(self) -> None:
        with self._inner_lock:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()
