"""Randomness by name: each random choice has a seed of its own, made from the run's seed and what it is for."""

from __future__ import annotations

from hashlib import blake2b


def sample_seed(seed: int, position: int, purpose: str) -> int:
    """A number of 63 bits that depends on all three arguments and on nothing else.

    `position` is the sample's place in the stream of samples (or an item's index), `purpose` a word such as "noise".
    Choices for different purposes are independent, so turning one option on does not change what another draws, and
    nothing needs to be saved to resume. A hash rather than a running generator, because samples are drawn by several
    processes and in any order. 63 bits, because torch.Generator.manual_seed takes any signed 64-bit number.
    """
    digest = blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
