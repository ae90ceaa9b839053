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

    Some items may be others' companions: then each sample of an epoch is followed into the queues by one of a
    companion, so that both kinds are seen equally often, and companions come round in permutations of their own. How
    many there are does not matter; of many, an epoch shows a part.
    """

    def __init__(
        self, seed: int, buckets_of_items: Sequence[int], repeats: Sequence[int], batch_size: int, companions: int = 0
    ) -> None:
        """`repeats` holds how often each item is seen in an epoch (of companions: in a round); the last `companions`
        items are such. Raises ValueError if there is nothing to see."""
        counts = np.asarray(repeats, dtype=np.int64)
        own = len(counts) - companions
        if len(counts) != len(buckets_of_items) or min(own, batch_size, *repeats) < 1 or companions < 0:
            raise ValueError("an order needs at least one item, and repeats and a batch size of at least 1")
        self._seed = seed
        self._batch_size = batch_size
        self._buckets = np.asarray(buckets_of_items, dtype=np.int64)
        self._own = _Round(np.arange(own), counts[:own])
        self._companions = _Round(np.arange(own, len(counts)), counts[own:]) if companions else None
        size = self.samples_per_epoch
        self._epochs_a_block = max(1, _BLOCK // size, -(-batch_size // size))
        nothing = np.empty(0, dtype=np.int64)
        self._starts = [_Left(0, nothing, nothing)]  # by block; small, since a queue holds less than a batch
        self._block: tuple[int, _Block] | None = None  # the one in use

    @property
    def samples_per_epoch(self) -> int:
        """Items times their repeats; with companions twice as many."""
        return len(self._own) * (2 if self._companions else 1)

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
        """Items and visits of one epoch, shuffled."""
        own = self._own.shuffled(epoch, [self._seed, epoch])
        if self._companions is None:
            return own
        first, last = epoch * len(self._own), (epoch + 1) * len(self._own)
        rounds = range(first // len(self._companions), (last - 1) // len(self._companions) + 1)
        # three numbers, so that no round of companions has the seed of an epoch
        shown = [self._companions.shuffled(number, [self._seed, number, 1]) for number in rounds]
        skipped = first - rounds[0] * len(self._companions)
        pairs = (np.concatenate(column)[skipped : skipped + len(self._own)] for column in zip(*shown, strict=True))
        items, visits = (np.stack(pair, axis=1).reshape(-1) for pair in zip(own, pairs, strict=True))
        return items, visits


class _Round:
    """Items times their repeats: what is shuffled together."""

    def __init__(self, items: Integers, repeats: Integers) -> None:
        self._items = np.repeat(items, repeats)
        self._repeats = np.repeat(repeats, repeats)
        self._turns = np.arange(len(self._items)) - np.repeat(np.cumsum(repeats) - repeats, repeats)

    def __len__(self) -> int:
        return len(self._items)

    def shuffled(self, number: int, seed: list[int]) -> tuple[Integers, Integers]:
        """Items and visits of round `number`.

        Sorts by raw 64-bit draws: NumPy promises a bit generator's stream for ever, but not Generator.permutation's
        (NumPy's compatibility policy for numpy.random, NEP 19).
        """
        draws = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(len(self._items))
        shuffled = np.argsort(draws, kind="stable")
        return self._items[shuffled], number * self._repeats[shuffled] + self._turns[shuffled]
