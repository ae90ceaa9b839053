"""From what a captioner says to the caption that is written."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lora_trainer.config.captioning import CaptionConfig

_TWO_LETTERS = re.compile(r"[^\W_]{2}")  # a tag without it is a face: ^_^, x_x, 0_0, (o)_(o)
_BARE_PARENTHESIS = re.compile(r"(?<!\\)[()]")


def worded(said: str, makes: str, config: CaptionConfig) -> str:
    """What a captioner said, as the options want it: tags sifted, spelled and counted, words taken out of sentences."""
    if makes == "tags":
        tags = wanted(_tags(said), config)
        text = ", ".join(_spelled(tag, config) for tag in tags[: config.max_tags])
    else:
        text = _without(said, _unwanted(config))
    return ", ".join(part for part in (config.prefix.strip(" ,"), text, config.suffix.strip(" ,")) if part)


def wanted(tags: Iterable[str], config: CaptionConfig) -> list[str]:
    """The tags that are not on the blacklist, whose entries may hold several with commas."""
    unwanted = _unwanted(config)
    return [tag for tag in tags if _key(tag) not in unwanted]


def joined(existing: str, new: str, how: str, makes: str) -> str:
    """The caption of an image that had one: `how` as the option `existing` says ("append", "prepend", "overwrite").

    Of tags only those are added that are not there; a sentence that is there already is not said twice.
    """
    if how == "overwrite" or not existing:
        return new
    if makes == "tags":
        there = {_key(tag) for tag in _tags(existing)}
        new = ", ".join(tag for tag in _tags(new) if _key(tag) not in there)
    elif new in existing:
        return existing
    pair = (existing, new) if how == "append" else (new, existing)
    return ", ".join(part for part in pair if part)


def _tags(text: str) -> Iterable[str]:
    return (tag.strip() for tag in text.split(",") if tag.strip())


def _unwanted(config: CaptionConfig) -> set[str]:
    return {_key(word) for entry in config.blacklist for word in entry.split(",") if word.strip()}


def _key(tag: str) -> str:
    """A tag as it is compared, however it is spelled."""
    return tag.strip().replace("_", " ").replace("\\", "").casefold()


def _spelled(tag: str, config: CaptionConfig) -> str:
    if config.underscores_to_spaces and _TWO_LETTERS.search(tag):
        tag = tag.replace("_", " ")
    return _BARE_PARENTHESIS.sub(lambda found: f"\\{found[0]}", tag) if config.escape_parentheses else tag


def _without(sentence: str, unwanted: Iterable[str]) -> str:
    for word in sorted(unwanted, key=len, reverse=True):
        sentence = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "", sentence, flags=re.IGNORECASE)
    sentence = re.sub(r"\s+([,.])", r"\1", " ".join(sentence.split()))
    return re.sub(r",{2,}", ",", sentence).strip(" ,")
