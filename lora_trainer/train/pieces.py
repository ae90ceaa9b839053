"""A micro-batch in pieces, one after the other: the same gradient from less memory."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, cast

from torch import Tensor


@dataclass
class Pieces:
    """Cuts micro-batches by rows. Which samples are in a step, and in what order, does not change by it.

    Each piece comes with the factor of its loss, so that the factors' sum over the pieces is the loss of the whole.
    """

    of_sums: bool = False  # the loss adds up what its rows have (TextBatch's divisor is the step's); else it is a mean
    count: int = 1  # pieces of a micro-batch, as far as it has rows

    def __call__(self, batch: Any) -> list[tuple[Any, float]]:
        rows = len(batch.positions)
        count = min(self.count, rows)
        if count == 1:
            return [(batch, 1.0)]
        edges = [rows * number // count for number in range(count + 1)]
        return [
            (_rows(batch, rows, start, stop), 1.0 if self.of_sums else (stop - start) / rows)
            for start, stop in pairwise(edges)
        ]


def _rows(value: Any, rows: int, start: int, stop: int) -> Any:
    """The rows of everything in `value` that has a row for each sample."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _rows(getattr(value, field.name), rows, start, stop) for field in fields(value)}
        return replace(cast(Any, value), **parts)
    if isinstance(value, Tensor):
        return value[start:stop] if value.ndim and len(value) == rows else value
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        return items[start:stop] if len(items) == rows else items
    return value
