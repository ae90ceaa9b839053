"""Several short samples in one row, so that little of a batch is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    """Rows of samples (by number) of at most `limit` tokens together: best fit, the longest first.

    Each sample goes where it leaves the least room (Johnson 1973, "Near-optimal bin packing algorithms", best-fit
    decreasing); samples within a row keep their order. The same lengths always give the same rows.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        place = bisect_left(room, (lengths[number], -1))
        if place == len(room):
            rows.append([number])
            insort(room, (limit - lengths[number], len(rows) - 1))
            continue
        left, row = room.pop(place)
        rows[row].append(number)
        insort(room, (left - lengths[number], row))
    return [tuple(sorted(row)) for row in rows]
