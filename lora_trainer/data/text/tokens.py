"""Samples as token numbers, with a mark at each token that is to be learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from lora_trainer.data.text.samples import Sample
from lora_trainer.data.text.wording import Tokenizer, Worded, Wording


class Encoded(NamedTuple):
    """One sample, or one piece of a long text."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]  # of the same length: the model is to say this token

    @property
    def targets(self) -> int:
        """Tokens that the loss looks at: the first of a sample has nothing before it to be told from."""
        return sum(self.learnt[1:])


@dataclass(frozen=True)
class Counted:
    """What became of the samples of a data set."""

    encoded: tuple[Encoded, ...]
    longest: int  # tokens, before anything was cut
    cut: int  # samples that lost their end
    lost: int  # samples whose answer would have been cut away wholly, and that are left out

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.encoded)

    @property
    def targets(self) -> int:
        """Tokens that are learnt."""
        return sum(sample.targets for sample in self.encoded)


def encode(sample: Sample, wording: Wording, train_on: str) -> Encoded:
    """All tokens of a sample; `train_on` "all" learns the questions too."""
    tokenizer = wording.tokenizer
    worded = wording.worded(sample)
    ids, learnt = _marked(worded, tokenizer)
    ends_itself = bool(sample.turns) and wording.ends_itself()
    if not ends_itself:
        first = _opening(tokenizer)
        ids, learnt = [*first, *ids], [*[False] * len(first), *learnt]
        if tokenizer.eos_token_id is not None:
            ids, learnt = [*ids, tokenizer.eos_token_id], [*learnt, True]
    if train_on == "all":
        learnt = [True] * len(ids)
    return Encoded(tuple(ids), tuple(learnt))


def question_ids(text: str, wording: Wording) -> list[int]:
    """Tokens of a question, as its sample's begin."""
    ids = cast("list[int]", wording.tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if wording.ends_itself() else [*_opening(wording.tokenizer), *ids]


def cut_to(encoded: Sequence[tuple[Encoded, bool]], limit: int) -> Counted:
    """Samples (and whether each is plain text) in at most `limit` tokens: plain text goes on in a next piece,
    conversations lose their end."""
    kept: list[Encoded] = []
    cut = lost = longest = 0
    for sample, plain in encoded:
        longest = max(longest, len(sample.ids))
        if plain:
            pieces = [Encoded(sample.ids[i : i + limit], sample.learnt[i : i + limit])
                      for i in range(0, len(sample.ids), limit)]  # fmt: skip
            kept += [piece for piece in pieces if piece.targets]
            continue
        shorter = Encoded(sample.ids[:limit], sample.learnt[:limit])
        lost += not shorter.targets
        cut += bool(shorter.targets) and len(sample.ids) > limit
        kept += [shorter] if shorter.targets else []
    return Counted(tuple(kept), longest, cut, lost)


def _opening(tokenizer: Tokenizer) -> list[int]:
    """The beginning-of-text token, where the tokenizer itself puts one in front."""
    alone = cast("list[int]", tokenizer("")["input_ids"])
    first = tokenizer.bos_token_id
    return [first] if first is not None and alone[:1] == [first] else []


def _marked(worded: Worded, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    if tokenizer.is_fast:
        found: Any = tokenizer(worded.text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = cast("list[tuple[int, int]]", found["offset_mapping"])
        return list(found["input_ids"]), [_overlaps(worded, *span) for span in offsets]
    ids, learnt, done = list[int](), list[bool](), 0
    for start, end in (*worded.answers, (len(worded.text), len(worded.text))):
        for piece, mark in ((worded.text[done:start], False), (worded.text[start:end], True)):
            new = cast("list[int]", tokenizer(piece, add_special_tokens=False)["input_ids"]) if piece else []
            ids += new
            learnt += [mark] * len(new)
        done = end
    return ids, learnt


def _overlaps(worded: Worded, start: int, end: int) -> bool:
    """Whether a token reaches into an answer; one that begins before it is still what the model must say next."""
    return any(start < last and end > first for first, last in worded.answers) and start < end
