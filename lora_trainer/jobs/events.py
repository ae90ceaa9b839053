"""The events of a job: numbered, timed, kept in bounds, and written down so that a later server still has them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from lora_trainer.contracts import Event, Prepared, Skipped, Stepped

MOST = 4000  # events kept: a graph is some 1000 pixels wide, and a few MiB of memory are nobody's loss
FRESH = 1000  # of these the newest, which no reader that polls has to miss
_OLDER = (MOST - FRESH) * 3 // 4  # of the others, after thinning; the rest is room until the next time
_SPARSEST = 2**24  # more than the steps of any run

KINDS: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in get_args(Event)}  # "stepped": Stepped


class Numbered(NamedTuple):
    """An event with its place in the job: a reader asks for what came after the last one it saw."""

    n: int  # rising, with gaps where events were thinned out
    at: float  # seconds since 1970
    event: Event


class EventLog:
    """What happened, in order; safe to fill and read from several threads.

    Past `MOST` events the older steps are thinned out, so that the graph of a run of a million steps keeps its shape
    at a lower resolution. Of a preparation only the newest count is kept.
    """

    def __init__(self, numbered: Iterable[Numbered] = (), last: int = 0) -> None:
        self._events = list(numbered)
        self._last = max([last, *(item.n for item in self._events[-1:])])
        self._lock = threading.Lock()

    @property
    def last(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._last

    def add(self, event: Event, at: float) -> None:
        """Take one more."""
        with self._lock:
            before = self._events[-1].event if self._events else None
            if isinstance(event, Prepared) and isinstance(before, Prepared) and before.what == event.what:
                self._events.pop()
            self._last += 1
            self._events.append(Numbered(self._last, at, event))
            if len(self._events) > MOST:
                self._events = _thinned(self._events)

    def after(self, n: int, limit: int) -> list[Numbered]:
        """The first `limit` events with a number above `n`."""
        with self._lock:
            start = _first_above(self._events, n)
            return self._events[start : start + limit]

    def everything(self) -> list[Numbered]:
        """All that is kept, at this moment."""
        with self._lock:
            return list(self._events)


def _first_above(events: list[Numbered], n: int) -> int:
    low, high = 0, len(events)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if events[middle].n <= n else (low, middle)
    return low


def _thinned(events: list[Numbered]) -> list[Numbered]:
    """Of the older steps every second, or fourth, ..., all over the run alike, so that most of the room is free again;
    where that is not enough (a run that saves at each step), the newest of all."""
    older, fresh = events[:-FRESH], events[-FRESH:]
    stride, kept = 1, older
    while len(kept) > _OLDER and stride < _SPARSEST:
        stride *= 2
        kept = [item for item in kept if not isinstance(item.event, Stepped | Skipped) or item.event.step % stride == 0]
    return [*kept[-_OLDER:], *fresh]


# --- as plain values -------------------------------------------------------------------------------------------------


def plain(event: Event) -> dict[str, Any]:
    """The event as JSON values: its kind in lower case, then its fields; numbers that are not finite become None."""
    values = {field.name: jsonable(getattr(event, field.name)) for field in fields(event)}
    return {"kind": type(event).__name__.lower(), **values}


def jsonable(value: Any) -> Any:
    """The value as JSON has it: paths as text, tuples as lists, numbers that are not finite as None."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def event_of(values: Mapping[str, Any]) -> Event:
    """The event that `plain` wrote. Raises KeyError and TypeError for anything else."""
    kind = KINDS[values["kind"]]
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind) if field.name in values or field.default is MISSING}
    return kind(**{name: _of_type(hints[name], values[name]) for name in known})


def _of_type(hint: Any, value: Any) -> Any:
    """Undo `jsonable` where JSON has fewer types than Python."""
    if value is None:
        return math.nan if hint is float else None
    if hint is float:
        return float(value)
    if get_origin(hint) is tuple:
        return tuple(_of_type(get_args(hint)[0], item) for item in value)
    return Path(value) if Path in (hint, *get_args(hint)) else value
