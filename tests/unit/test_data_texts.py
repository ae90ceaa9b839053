"""Cached states of captions equal those made anew, in any company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lora_trainer.contracts import Prepared, TextStates
from lora_trainer.data.texts import TextCache

WIDTH = 6


class Encoder:
    """Chunks of 75 words, padded with empty chunks to the longest of the batch, as the WebUI does it with tokens."""

    def __init__(self, pooled: bool = True, noise: float = 0.0) -> None:
        self.pooled = pooled
        self.noise = noise
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, captions: Sequence[str]) -> TextStates:
        self.calls.append(tuple(captions))
        words = [caption.split() for caption in captions]
        chunks = max(1, *(-(-len(one) // 75) for one in words))
        context = torch.cat([self._chunk(words, start * 75) for start in range(chunks)], dim=1)
        rounding = torch.randn(context.shape, generator=torch.Generator().manual_seed(len(captions)))
        context = context + self.noise * rounding
        lengths = torch.tensor([[float(len(one))] for one in words])
        return TextStates(context, lengths.repeat(1, 3) if self.pooled else None)

    def _chunk(self, words: list[list[str]], start: int) -> torch.Tensor:
        states = torch.full((len(words), 77, WIDTH), 0.7)
        for row, one in enumerate(words):
            for place, word in enumerate(one[start : start + 75], 1):
                generator = torch.Generator().manual_seed(sum(word.encode()))
                states[row, place:] += torch.randn(WIDTH, generator=generator)  # all later states see the word
        return states


SHORT, MIDDLE, LONG = "red cat", " ".join(["tag"] * 80), " ".join(f"w{number}" for number in range(200))


@pytest.mark.parametrize("pooled", [True, False])
def test_a_batch_equals_the_encoder_s_own(pooled: bool) -> None:
    encoder = Encoder(pooled)
    cache = TextCache(encoder)
    events = list(cache.fill({SHORT, MIDDLE, LONG, ""}))
    assert events[-1] == Prepared("captions", 3, 3)
    calls = len(encoder.calls)
    for captions in ([SHORT], [SHORT, LONG], [MIDDLE, "", SHORT], [LONG, LONG]):
        found = cache.batch(captions)
        assert len(encoder.calls) == calls  # nothing was encoded again
        wanted = Encoder(pooled)(captions)
        assert torch.equal(found.context, wanted.context)
        assert (found.pooled is None) is not pooled
        if found.pooled is not None and wanted.pooled is not None:
            assert torch.equal(found.pooled, wanted.pooled)


def test_padding_is_recognised_through_rounding() -> None:
    cache = TextCache(Encoder(noise=1e-3))
    list(cache.fill({SHORT, LONG}))
    assert cache.batch([SHORT]).context.shape == (1, 77, WIDTH)
    assert cache.batch([LONG, SHORT]).context.shape == (2, 3 * 77, WIDTH)


def test_a_caption_not_foreseen_is_encoded_alone() -> None:
    encoder = Encoder()
    cache = TextCache(encoder)
    list(cache.fill(set()))
    found = cache.batch(["blue dog", "", LONG])
    assert encoder.calls == [("",), ("blue dog",), (LONG,)]
    assert torch.equal(found.context, Encoder()(["blue dog", "", LONG]).context)


def test_states_carry_no_graph() -> None:
    weight = torch.ones(WIDTH, requires_grad=True)
    cache = TextCache(lambda captions: TextStates(torch.ones(len(captions), 77, WIDTH) * weight))
    list(cache.fill({"a"}))
    found = cache.batch(["a", "b"]).context
    assert not found.requires_grad
