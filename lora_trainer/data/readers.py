"""Many files read by several threads, their results in the files' order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

THREADS = max(2, min(8, os.cpu_count() or 2))  # decoding lets the others run
_AHEAD = 4 * THREADS  # asked for and not yet taken: bounds the memory, and what a stop has to wait for


def in_order(work: Callable[[In], Out], given: Sequence[In], name: str) -> Iterator[tuple[In, Out]]:
    """Each of `given` with what `work` makes of it, some ahead of whoever asks; `name` is that of the threads."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
    try:
        asked: deque[tuple[In, Future[Out]]] = deque()
        rest = iter(given)
        while True:
            for one in rest:
                asked.append((one, pool.submit(work, one)))
                if len(asked) >= _AHEAD:
                    break
            if not asked:
                return
            one, future = asked.popleft()
            yield one, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
