"""Which images are trained on when: a pure function of the seed and the counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# Epochs are worked out in blocks of at least this many samples, since a call of numpy costs as much as some hundred
# numbers; the stream itself does not depend on it.
_BLOCK = 1024


class Sample(NamedTuple):
    """One look at one image."""

    position: int  # place in the endless stream of samples, from 0
    item: int  # index of the image
    visit: int  # how many looks at this image the stream holds before this one


class _Block(NamedTuple):
    first: int  # index of its first micro-batch
    items: Integers  # (micro-batches, batch size)
    visits: Integers  # (micro-batches, batch size)


class _Left(NamedTuple):
    """Samples that wait in their buckets' queues when a block begins, and the micro-batches emitted before it."""

    emitted: int
    items: Integers
    visits: Integers


class Order:
    """The endless stream of full micro-batches, each of one bucket.

    An epoch is a seeded permutation of all images times their repeats. Its samples go one by one into the queue of
    their bucket; a queue that holds `batch_size` samples leaves as a micro-batch. What is left in the queues waits
    for the next epoch, so every batch is full and every image is seen equally often, give or take what waits.
    Micro-batches are numbered as they leave, samples within them run on; with a single bucket, batch 2 and twice
    batch 1 see the same samples at the same positions.
    """

    def __init__(self, seed: int, buckets_of_items: Sequence[int], repeats: Sequence[int], batch_size: int) -> None:
        """`repeats` holds how often each item is seen in an epoch; raises ValueError if there is nothing to see."""
        if len(repeats) != len(buckets_of_items) or not len(repeats) or min(repeats) < 1 or batch_size < 1:
            raise ValueError("an order needs at least one item, and repeats and a batch size of at least 1")
        self._seed = seed
        self._batch_size = batch_size
        self._buckets = np.asarray(buckets_of_items, dtype=np.int64)
        counts = np.asarray(repeats, dtype=np.int64)
        self._repeats = counts
        self._slots = np.repeat(np.arange(len(counts)), counts)  # item of each sample of an unshuffled epoch
        self._turns = np.arange(len(self._slots)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._epochs_a_block = max(1, _BLOCK // len(self._slots), -(-batch_size // len(self._slots)))
        nothing = np.empty(0, dtype=np.int64)
        self._starts = [_Left(0, nothing, nothing)]  # by block; small, since a queue holds less than a batch
        self._block: tuple[int, _Block] | None = None  # the one in use

    @property
    def samples_per_epoch(self) -> int:
        """Images times their repeats."""
        return len(self._slots)

    def micro_batch(self, index: int) -> list[Sample]:
        """The samples of micro-batch `index`, from 0; any index in any order, cheapest when it grows."""
        block = self._block_of(index)
        row = index - block.first
        first = index * self._batch_size
        pairs = zip(block.items[row].tolist(), block.visits[row].tolist(), strict=True)
        return [Sample(first + offset, item, visit) for offset, (item, visit) in enumerate(pairs)]

    def _block_of(self, index: int) -> _Block:
        number = 0
        if self._block is not None and index >= self._block[1].first:
            number, block = self._block
            if index < block.first + len(block.items):
                return block
        while len(self._starts) > number + 1 and self._starts[number + 1].emitted <= index:
            number += 1
        while True:
            block, left = self._work_out(number)
            if number + 1 == len(self._starts):
                self._starts.append(left)
            if index < left.emitted:
                self._block = (number, block)
                return block
            number += 1

    def _work_out(self, number: int) -> tuple[_Block, _Left]:
        """Block `number`'s micro-batches, and what waits behind them. Shapes: N samples in the block, K batches."""
        start = self._starts[number]
        epochs = range(number * self._epochs_a_block, (number + 1) * self._epochs_a_block)
        shuffled = [self._epoch(epoch) for epoch in epochs]
        items = np.concatenate([start.items, *(pair[0] for pair in shuffled)])  # (N,) as they arrive
        visits = np.concatenate([start.visits, *(pair[1] for pair in shuffled)])
        buckets = self._buckets[items]
        queued = np.argsort(buckets, kind="stable")  # arrivals, bucket by bucket
        sizes = np.bincount(buckets[queued])
        heads = np.repeat(np.cumsum(sizes) - sizes, sizes)
        full = np.repeat(sizes - sizes % self._batch_size, sizes)
        leaves = np.arange(len(queued)) - heads < full
        batches = queued[leaves].reshape(-1, self._batch_size)  # (K, batch size)
        batches = batches[np.argsort(batches[:, -1])]  # a batch leaves when its last sample arrives
        waiting = np.sort(queued[~leaves])
        block = _Block(start.emitted, items[batches], visits[batches])
        return block, _Left(start.emitted + len(batches), items[waiting], visits[waiting])

    def _epoch(self, epoch: int) -> tuple[Integers, Integers]:
        """Items and visits of one epoch, shuffled.

        Sorts by raw 64-bit draws: NumPy promises a bit generator's stream for ever, but not Generator.permutation's
        (NumPy's compatibility policy for numpy.random, NEP 19).
        """
        draws = np.random.PCG64(np.random.SeedSequence([self._seed, epoch])).random_raw(len(self._slots))
        shuffled = np.argsort(draws, kind="stable")
        items = self._slots[shuffled]
        return items, epoch * self._repeats[items] + self._turns[shuffled]
