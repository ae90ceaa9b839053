"""Encoded samples as the endless stream of batches that the loop trains on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from lora_trainer.contracts import TextBatch
from lora_trainer.data.order import Order
from lora_trainer.data.text.packing import pack
from lora_trainer.data.text.tokens import Encoded

Row = tuple[int, ...]  # numbers of the samples in it


class TextData:
    """Implements `contracts.Batches`: batch `index` is a function of the samples, the seed and the index.

    The loss of a step is the mean over all tokens that it learns, however they are spread over its micro-batches, so
    that accumulating gives what a larger batch gives.
    """

    def __init__(
        self, samples: Sequence[Encoded], *, batch_size: int, seed: int, pad: int, repeats: int = 1,
        packed_to: int = 0, micro_batches: int = 1,
    ) -> None:  # fmt: skip
        """`packed_to`: tokens of a row that is filled with several samples, 0 for a row a sample; `micro_batches`:
        in one step, of all processes."""
        self.samples: Sequence[Encoded] = tuple(samples)
        self.rows: list[Row] = (
            pack([len(sample.ids) for sample in samples], packed_to)
            if packed_to
            else [(number,) for number in range(len(samples))]
        )
        self._pad = pad
        self._micro_batches = micro_batches
        self._batch_size = batch_size
        self._order = Order(seed, [0] * len(self.rows), [repeats] * len(self.rows), batch_size)
        self._targets = [sum(self.samples[number].targets for number in row) for row in self.rows]

    @property
    def samples_per_epoch(self) -> int:
        """Rows times their repeats."""
        return self._order.samples_per_epoch

    @property
    def fill(self) -> float:
        """Share of the longest row that an average row fills."""
        lengths = [self._length(row) for row in self.rows]
        return sum(lengths) / len(lengths) / max(lengths)

    def steps_for(self, epochs: int) -> int:
        """Optimizer steps after which every row was seen `epochs` times; the last one may reach beyond."""
        return math.ceil(self.samples_per_epoch * epochs / (self._batch_size * self._micro_batches))

    def digest(self) -> str:
        """Changes with any token that is trained on; SHA-256."""
        told = hashlib.sha256()
        for sample in self.samples:
            told.update(repr(sample).encode())
        return told.hexdigest()

    def __call__(self, index: int) -> TextBatch:
        """Micro-batch `index`, from 0; all tensors on the CPU."""
        taken = self._order.micro_batch(index)
        first = index // self._micro_batches * self._micro_batches
        whole = sum(
            self._targets[sample.item]
            for micro in range(first, first + self._micro_batches)
            for sample in self._order.micro_batch(micro)
        )
        rows = [self.rows[sample.item] for sample in taken]
        return self.batch(rows, tuple(sample.position for sample in taken), whole / self._micro_batches)

    @property
    def widest(self) -> int:
        """Tokens of the longest row."""
        return max(self._length(row) for row in self.rows)

    def heaviest(self) -> TextBatch:
        """What takes most memory: as wide as the longest row, with as many learnt tokens as a micro-batch can have.

        Those that its own rows lack are taken from their questions. The stream goes on as if nobody had asked.
        """
        longest = sorted(self.rows, key=self._length, reverse=True)
        rows = [longest[number % len(longest)] for number in range(self._batch_size)]
        batch = self.batch(rows, tuple(range(len(rows))), 1.0)
        ordered = sorted(self._targets, reverse=True)
        most = sum(ordered[number % len(ordered)] for number in range(self._batch_size))
        more = ((batch.places > 0) & ~batch.learnt).nonzero()[: max(0, most - int(batch.learnt.sum()))]
        learnt = batch.learnt.clone()
        learnt[more[:, 0], more[:, 1]] = True
        return replace(batch, learnt=learnt, divisor=float(learnt.sum()))

    def _length(self, row: Row) -> int:
        return sum(len(self.samples[number].ids) for number in row)

    def probe(self, tokens: int = 6) -> tuple[TextBatch, TextBatch]:
        """The beginnings of two samples, in one row and in a row each, to try whether they see each other there."""
        pieces = [sample.ids[:tokens] for sample in (self.samples[0], self.samples[-1])]
        every = [Encoded(piece, (True,) * len(piece)) for piece in pieces if len(piece) > 1]
        every = every * 2 if len(every) == 1 else every
        small = TextData(every, batch_size=len(every), seed=0, pad=self._pad)
        apart = small.batch([(number,) for number in range(len(every))], (0,), 1.0)
        return small.batch([tuple(range(len(every)))], (0,), 1.0), apart

    def batch(self, rows: Sequence[Row], positions: tuple[int, ...], divisor: float) -> TextBatch:
        """These rows side by side, padded to the longest."""
        wide = max(self._length(row) for row in rows)
        ids = torch.full((len(rows), wide), self._pad)
        blocks = torch.zeros((len(rows), wide), dtype=torch.long)
        places = torch.zeros((len(rows), wide), dtype=torch.long)
        learnt = torch.zeros((len(rows), wide), dtype=torch.bool)
        for line, row in enumerate(rows):
            start = 0
            for block, number in enumerate(row, 1):
                sample = self.samples[number]
                span = slice(start, start + len(sample.ids))
                ids[line, span] = torch.tensor(sample.ids)
                blocks[line, span] = block
                places[line, span] = torch.arange(len(sample.ids))
                learnt[line, span] = torch.tensor(sample.learnt)
                learnt[line, start] = False  # nothing of its own stands before it
                start = span.stop
        return TextBatch(positions, ids, blocks, places, learnt, divisor)
