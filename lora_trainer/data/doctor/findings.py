"""What the doctor can find, and the form in which it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lora_trainer.data.buckets import Buckets

Severity = Literal["error", "warning", "advice"]
Remedy = Literal["", "exclude", "trigger", "rows", "utf8", "mask"]


class Kind(NamedTuple):
    """One thing that can be wrong."""

    title: str  # fits behind a number: "3 blurred"
    remedy: Remedy  # what code can do about it; "" where a person has to
    told: bool = False  # by the scan's own warnings already


KINDS: dict[str, Kind] = {
    "unreadable": Kind("unreadable", "exclude", told=True),
    "tiny": Kind("smaller than their bucket", "exclude"),
    "blurry": Kind("blurred", "exclude"),
    "duplicate": Kind("exact copies", "exclude"),
    "near_duplicate": Kind("near copies", "exclude"),
    "transparent": Kind("transparent", "mask"),
    "turned": Kind("turned by EXIF", "", told=True),  # nothing is to be done about it
    "extreme_aspect": Kind("too long or too wide", ""),
    "grey": Kind("grey among coloured ones", ""),
    "no_caption": Kind("without a caption", "", told=True),
    "caption_too_long": Kind("with a caption of more than 75 tokens", ""),
    "trigger_missing": Kind("without the trigger word in front", "trigger"),
    "same_caption": Kind("with the same caption", ""),
    "file_name_caption": Kind("with the file's name as caption", ""),
    "one_word_caption": Kind("with a caption of one word", ""),
    "doubled_rows": Kind("named in several rows", "rows", told=True),
    "rows_without_image": Kind("named in rows and not there", "", told=True),
    "not_unicode": Kind("caption files that are not UTF-8", "utf8", told=True),
}

REMEDIES: dict[Remedy, str] = {
    "exclude": "left out of the data set by a line in lora_trainer_excluded.txt; no file is touched",
    "trigger": "the trigger word is put in front of these captions",
    "rows": "of several rows for a file the last one is kept",
    "utf8": "saved as UTF-8, the text staying as it is read",
    "mask": "the opacity is written beside each image as NAME-masklabel.png, for trainings that take masks",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and with which images."""

    kind: str  # of KINDS
    severity: Severity  # error: cannot be trained on; warning: spoils a training; advice: good to know
    images: tuple[str, ...]  # names relative to the data set's folder; of what concerns rows or files, their names
    sentence: str  # what it is, why it matters, what to do
    acted_on: tuple[str, ...] = ()  # what the remedy changes or leaves out; () for all images
    groups: tuple[tuple[str, ...], ...] = ()  # of copies: those alike, the one to keep first

    @property
    def remedy(self) -> Remedy:
        """What code can do about it; "" where a person has to."""
        return KINDS[self.kind].remedy


@dataclass(frozen=True)
class Wanted:
    """The training that the pictures are judged for."""

    buckets: Buckets
    trigger: str = ""  # word that the LoRA is called by
    adds_trigger: bool = False  # whether the training puts it in front of each caption itself
    tokens: Callable[[str], int] | None = None  # tokens of a caption, without begin and end; None: not counted


def some(names: tuple[str, ...] | list[str], most: int = 3) -> str:
    """The first of some names: "a.png, b.png, c.png and 4 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count(number: int, noun: str, verb: str = "", verbs: str = "") -> str:
    """A number with its noun, and the verb that agrees: "1 image", "2 images are"."""
    return f"{number} {noun} {verb}".rstrip() if number == 1 else f"{number} {noun}s {verbs}".rstrip()
