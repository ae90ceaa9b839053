"""Which images of an opened data set are asked for, in which order; and which tags there are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lora_trainer.data.captions import with_trigger
from lora_trainer.data.doctor.findings import KINDS
from lora_trainer.data.doctor.words import CHUNK
from lora_trainer.data.scan import Item
from lora_trainer.data.workshop.edits import tags_of

Sort = Literal["name", "caption", "length", "tokens", "changed"]
SORTS: tuple[Sort, ...] = ("name", "caption", "length", "tokens", "changed")

# Seen in the caption itself, and so told at once; each has its kind of finding too.
_AT_ONCE = {"no_caption": "no_caption", "too_long": "caption_too_long", "no_trigger": "trigger_missing"}
FLAGS = tuple(dict.fromkeys([*_AT_ONCE, *KINDS]))

# Words between two commas: of booru tags one or two, of sentences many.
_SENTENCE = 4.0
_WORD = re.compile(r"[\u2e80-\uffef]|[^\W_\u2e80-\uffef][\w'\u2019-]*")  # scripts without spaces: a sign is a word


@dataclass(frozen=True)
class Facts:
    """What an image can be asked about besides its item."""

    tokens: Callable[[str], int]
    trigger: str
    changed: Callable[[Item], int]  # nanoseconds since 1970
    found: Mapping[str, Sequence[str]]  # kinds of findings of the doctor, by image
    sentences: bool  # whether captions are sentences, of which words are counted, and not tags

    def flags(self, item: Item) -> list[str]:
        """What is to be said of the image, in a word each."""
        at_once = [flag for flag in _AT_ONCE if self._has(item, flag)]
        return at_once + [kind for kind in self.found.get(item.name, ()) if kind not in _AT_ONCE.values()]

    def starts_with_trigger(self, item: Item) -> bool:
        """Whether a training would find the trigger word in front; True where there is none."""
        return with_trigger(item.caption, self.trigger) == item.caption

    def has(self, item: Item, flag: str) -> bool:
        """Whether `flags` holds it, under either of its names."""
        short = next((short for short, kind in _AT_ONCE.items() if flag in (short, kind)), None)
        return self._has(item, short) if short else flag in self.found.get(item.name, ())

    def pieces(self, caption: str) -> list[str]:
        """Its tags, or its words."""
        return [word.casefold() for word in _WORD.findall(caption)] if self.sentences else tags_of(caption)

    def _has(self, item: Item, flag: str) -> bool:
        if flag == "no_caption":
            return not item.caption
        if flag == "too_long":
            # a token stands for at least one byte, so short ones need not be counted
            return len(item.caption.encode("utf-8", "replace")) > CHUNK and self.tokens(item.caption) > CHUNK
        return bool(item.caption) and not self.starts_with_trigger(item)


@dataclass(frozen=True)
class Filter:
    """Which images; without anything all of them."""

    tags: tuple[str, ...] = ()  # all of these
    without: tuple[str, ...] = ()  # none of these
    text: str = ""  # in the caption or the name, in either case
    flag: str = ""

    def of(self, items: Iterable[Item], facts: Facts) -> list[Item]:
        """Those that are meant, in their order."""
        text, tags, without = self.text.casefold(), frozenset(self.tags), frozenset(self.without)
        return [
            item for item in items
            if (not text or text in item.caption.casefold() or text in item.name.casefold())
            and (not tags or tags.issubset(facts.pieces(item.caption)))
            and (not without or without.isdisjoint(facts.pieces(item.caption)))
            and (not self.flag or facts.has(item, self.flag))
        ]  # fmt: skip


def ordered(items: list[Item], sort: Sort, facts: Facts, *, descending: bool) -> list[Item]:
    """In the order that is asked for; what is equal stays in the order of names."""
    keys: dict[Sort, Callable[[Item], object]] = {
        "caption": lambda item: item.caption.casefold(),
        "length": lambda item: len(item.caption),
        "tokens": lambda item: facts.tokens(item.caption),
        "changed": facts.changed,
    }
    if sort == "name":
        return items[::-1] if descending else items
    return sorted(items, key=keys[sort], reverse=descending)  # type: ignore[arg-type]  # str or int, of one kind each


def tag_counts(items: Iterable[Item], facts: Facts, text: str = "") -> list[tuple[str, int]]:
    """(tag, images) of those that hold the text, the most frequent first; words where captions are sentences."""
    counts = Counter(tag for item in items for tag in dict.fromkeys(facts.pieces(item.caption)))
    text = text.casefold()
    found = [(tag, count) for tag, count in counts.items() if text in tag.casefold()]
    return sorted(found, key=lambda pair: (-pair[1], pair[0].casefold(), pair[0]))


def are_sentences(captions: Collection[str]) -> bool:
    """Whether these are rather sentences than tags."""
    pieces = sum(len(tags_of(caption)) for caption in captions)
    return pieces > 0 and sum(len(caption.split()) for caption in captions) / pieces >= _SENTENCE
