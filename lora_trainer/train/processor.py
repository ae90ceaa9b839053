"""What this computer's processor is quick at, measured and not looked up: flags tell what it can, not what it gains."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

PAYS = 1.5  # times as fast as float32, so that chance alone does not say it
_ROUNDS = 3
_ROWS, _WIDTH = 256, 1024  # half a gigaflop: milliseconds, and far more work than a call is


@lru_cache(maxsize=1)
def bfloat16_pays() -> bool:
    """Whether products in bfloat16 are clearly faster than in float32; measured once, in hundredths of a second."""
    return _seconds(torch.float32) >= PAYS * _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """Of one product, the fastest of some after one that does not count."""
    rows, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    took: list[float] = []
    with torch.inference_mode():
        for _ in range(_ROUNDS + 1):
            began = time.perf_counter()
            torch.mm(rows, weight)
            took.append(time.perf_counter() - began)
    return min(took[1:])
