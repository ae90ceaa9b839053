"""Encoded captions, kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from lora_trainer.contracts import Event, Prepared, TextStates

EncodeText = Callable[[Sequence[str]], TextStates]

_CHUNK = 77  # tokens of a chunk: CLIP's context, begin and end marks included
_AT_ONCE = 8  # captions encoded together while caching
# Below this share of its norm a last chunk counts as that of an empty caption: rounding in half precision stays under
# a thousandth, while one token more changes all states behind it.
_SAME = 0.01


class TextCache:
    """States of captions, encoded once each; those that were not foreseen are encoded when asked for.

    A caption's states do not hang on its neighbours: chunks that were added to match them are taken off, and put on
    again, as states of the empty caption, to match those of a batch.
    """

    def __init__(self, encode_text: EncodeText) -> None:
        self._encode_text = encode_text
        self._states: dict[str, TextStates] = {}  # each (1, 77 n, D) and (1, P) on the CPU, in the encoder's dtype

    def fill(self, captions: Collection[str]) -> Iterator[Event]:
        """Encode these and the empty one now; afterwards the encoder is only needed for others."""
        self._states[""] = self._encoded([""])[0]
        # those of like length together, so that few are padded; by text, so that every run groups them alike
        waiting = sorted(set(captions) - {""}, key=lambda caption: (len(caption), caption))
        for start in range(0, len(waiting), _AT_ONCE):
            group = waiting[start : start + _AT_ONCE]
            self._states.update(zip(group, self._encoded(group), strict=True))
            yield Prepared("captions", start + len(group), len(waiting))

    def batch(self, captions: Sequence[str]) -> TextStates:
        """(B, 77 n, D) and (B, P): n is that of the longest caption, shorter ones end in states of the empty one."""
        # Encoded one by one: what was asked for together before must not show in the last bits after a resume.
        states = [self._states.get(caption) or self._encoded([caption])[0] for caption in captions]
        empty = self._states[""].context
        chunks = max(one.context.shape[1] for one in states) // _CHUNK
        padded = [
            torch.cat([one.context, *[empty] * (chunks - one.context.shape[1] // _CHUNK)], dim=1) for one in states
        ]
        pooled = [one.pooled for one in states if one.pooled is not None]
        return TextStates(torch.cat(padded), torch.cat(pooled) if pooled else None)

    def _encoded(self, captions: Sequence[str]) -> list[TextStates]:
        with torch.no_grad():
            states = self._encode_text(captions)
        context = states.context.cpu()
        pooled = None if states.pooled is None else states.pooled.cpu()
        empty = self._states[""].context if "" in self._states else None
        rows = [slice(row, row + 1) for row in range(len(captions))]
        return [
            TextStates(_without_padding(context[row], empty).clone(), None if pooled is None else pooled[row].clone())
            for row in rows
        ]


def _without_padding(context: Tensor, empty: Tensor | None) -> Tensor:
    """The states (1, 77 n, D) without last chunks that say nothing."""
    while empty is not None and context.shape[1] > _CHUNK:
        difference = (context[:, -_CHUNK:].float() - empty.float()).norm()
        if difference > _SAME * empty.float().norm():
            break
        context = context[:, :-_CHUNK]
    return context
