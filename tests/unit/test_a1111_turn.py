"""The queue lock by the step, against a lock with the WebUI's own semantics."""

from __future__ import annotations

import threading
import time

import pytest

from lora_trainer.hosts.a1111.turn import LET_PASS, Turn
from tests.builders.fifo_lock import FIFOLock


@pytest.fixture
def lock() -> FIFOLock:
    return FIFOLock()


def test_a_turn_within_a_turn_is_the_same(lock: FIFOLock) -> None:
    turn = Turn(lock)
    with turn:
        with turn:
            assert lock._lock.locked()
        assert lock._lock.locked()
        assert not turn.contended()
    assert not lock._lock.locked()


def test_a_turn_ends_with_an_error(lock: FIFOLock) -> None:
    turn = Turn(lock)
    with pytest.raises(ZeroDivisionError), turn:
        raise ZeroDivisionError
    assert not lock._lock.locked()
    assert not turn.contended()


def test_whoever_holds_or_waits_contends(lock: FIFOLock) -> None:
    turn = Turn(lock)
    lock.acquire()  # a generation's
    assert turn.contended()
    lock.release()
    assert not turn.contended()
    with turn:
        other = threading.Thread(target=_take_and_leave, args=(lock, []))
        other.start()
        _until(lambda: bool(lock._pending_threads))
        assert turn.contended()
    other.join()
    assert not turn.contended()


def test_who_waits_is_next_although_we_ask_again_at_once(lock: FIFOLock) -> None:
    turn, order = Turn(lock), list[str]()
    with turn:
        others = [threading.Thread(target=_take_and_leave, args=(lock, order)) for _ in range(3)]
        for number, other in enumerate(others):
            other.start()
            _until(lambda number=number: len(lock._pending_threads) == number + 1)
    for _ in range(6):
        with turn:
            order.append("ours")
            time.sleep(0.01)
    for other in others:
        other.join()
    assert order.index("theirs") == 0  # the first was let pass before our next turn
    assert "theirs" not in order[6:]  # and none had to wait for the end


def test_another_thread_of_ours_waits_like_anybody(lock: FIFOLock) -> None:
    turn, order = Turn(lock), list[str]()

    def second() -> None:
        with turn:
            order.append("second")

    with turn:
        thread = threading.Thread(target=second)
        thread.start()
        _until(lambda: bool(lock._pending_threads))
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_letting_pass_has_an_end(lock: FIFOLock) -> None:
    """A waiter that never takes the lock (its thread was killed) does not hold a training up for good."""
    turn = Turn(lock)
    lock._pending_threads.append(threading.Event())
    began = time.monotonic()
    with turn:
        pass
    assert LET_PASS <= time.monotonic() - began < 20 * LET_PASS


def _take_and_leave(lock: FIFOLock, order: list[str]) -> None:
    lock.acquire()
    order.append("theirs")
    lock.release()


def _until(true: object) -> None:
    deadline = time.monotonic() + 10
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)
