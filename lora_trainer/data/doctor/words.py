"""What is wrong with captions, and with the files that they stand in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from lora_trainer.data.captions import with_trigger
from lora_trainer.data.doctor.findings import Finding, Wanted, count
from lora_trainer.data.scan import Item, Scan

CHUNK = 75  # tokens that CLIP's text encoders take at once, besides begin and end (their 77 positions)

_LEAST_SAME = 3  # images: fewer with the same caption may well show the same
_WORDS = re.compile(r"[\u2e80-\uffef]|[^\W_\u2e80-\uffef]+")  # scripts without spaces: a sign is a word


def about_captions(scan: Scan, wanted: Wanted) -> Iterator[Finding]:
    """Findings about captions and caption files."""
    captioned = [item for item in scan.items if item.caption]
    yield from _missing(scan)
    yield from _too_long(captioned, wanted)
    yield from _without_trigger(captioned, wanted)
    same = _same(captioned, wanted.trigger)
    yield from same
    yield from _file_names(captioned)
    said = {name for finding in same for name in finding.images}
    yield from _one_word([item for item in captioned if item.name not in said], wanted.trigger)
    yield from _files(scan)


def _missing(scan: Scan) -> Iterator[Finding]:
    missing = scan.missing_captions
    if missing:
        yield Finding(
            "no_caption", "warning", missing,
            f"{len(missing)} of {count(len(scan.items), 'image', 'has', 'have')} no caption, so that nothing in a "
            "prompt can "
            "call what they teach: write captions, or let `python -m lora_trainer caption` do it.",
        )  # fmt: skip


def _too_long(captioned: Sequence[Item], wanted: Wanted) -> Iterator[Finding]:
    if wanted.tokens is None:
        return
    lengths: dict[str, int] = {}
    for item in captioned:
        caption = with_trigger(item.caption, wanted.trigger) if wanted.adds_trigger else item.caption
        # a token stands for at least one byte, so short ones need not be counted
        if len(caption.encode("utf-8", "replace")) > CHUNK and (length := wanted.tokens(caption)) > CHUNK:
            lengths[item.name] = length
    if lengths:
        longest = max(lengths, key=lambda name: lengths[name])
        yield Finding(
            "caption_too_long", "advice", tuple(lengths),
            f"{count(len(lengths), 'caption', 'has', 'have')} more than {CHUNK} tokens ({longest}: "
            f"{lengths[longest]}), "
            "read in pieces that know nothing of each other, as the WebUI reads a long prompt: put what matters into "
            f"the first {CHUNK} tokens, or shorten them.",
        )  # fmt: skip


def _without_trigger(captioned: Sequence[Item], wanted: Wanted) -> Iterator[Finding]:
    if not wanted.trigger or wanted.adds_trigger:
        return
    found = [item.name for item in captioned if with_trigger(item.caption, wanted.trigger) != item.caption]
    if found:
        yield Finding(
            "trigger_missing", "warning", tuple(found),
            f"{count(len(found), 'caption', 'does', 'do')} not begin with {wanted.trigger!r}, so that the word "
            "calls the LoRA "
            "less surely: put it in front, or name it as data.trigger, and the training does.",
        )  # fmt: skip


def _same(captioned: Sequence[Item], trigger: str) -> list[Finding]:
    counts = Counter(item.caption for item in captioned)
    if not counts:
        return []
    caption, times = counts.most_common(1)[0]
    if times < _LEAST_SAME or 2 * times < len(captioned):
        return []
    names = tuple(item.name for item in captioned if item.caption == caption)
    shown = caption if len(caption) <= 60 else f"{caption[:60]}..."
    return [Finding(
        "same_caption", "advice" if _is_only(trigger, caption) else "warning", names,
        f"{times} of {count(len(captioned), 'caption', 'is', 'are')} the same ({shown!r}), so that all that differs "
        "between "
        "these images becomes part of its words: describe what varies (pose, place, light), and leave out what the "
        "LoRA shall learn.",
    )]  # fmt: skip


def _file_names(captioned: Sequence[Item]) -> Iterator[Finding]:
    found = [item.name for item in captioned if _words(item.caption) == _words(PurePosixPath(item.name).stem)]
    found = [name for name in found if _words(PurePosixPath(name).stem)]
    # names that are made of several words ("a red barn.png") may be captions on purpose
    bare = [name for name in found if len([word for word in _words(PurePosixPath(name).stem) if word.isalpha()]) < 3]
    if bare:
        yield Finding(
            "file_name_caption", "warning", tuple(bare),
            f"{count(len(bare), 'caption', 'says', 'say')} no more than the file's name (such as {bare[0]}), which "
            "teaches the "
            "name: describe what is to be seen.",
        )  # fmt: skip


def _one_word(captioned: Sequence[Item], trigger: str) -> Iterator[Finding]:
    found = [
        item.name for item in captioned
        if len(_words(item.caption.removeprefix(trigger))) < 2 and not _is_only(trigger, item.caption)
    ]  # fmt: skip
    if found:
        yield Finding(
            "one_word_caption", "advice", tuple(found),
            f"{count(len(found), 'caption', 'consists', 'consist')} of a single word or none (such as that of "
            f"{found[0]}): say what "
            "else is to be seen, or it becomes part of that word.",
        )  # fmt: skip


def _is_only(trigger: str, caption: str) -> bool:
    """Whether the caption is the trigger word and nothing else, which is a known way to train."""
    return bool(trigger) and caption.strip(" ,.") == trigger


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORDS.findall(text)]


def _files(scan: Scan) -> Iterator[Finding]:
    if scan.doubled_rows:
        yield Finding(
            "doubled_rows", "warning", scan.doubled_rows,
            f"{count(len(scan.doubled_rows), 'file', 'has', 'have')} several rows in the table of captions (such as "
            f"{scan.doubled_rows[0]}), of which only the last counts: take the others out.",
        )  # fmt: skip
    if scan.rows_without_image:
        yield Finding(
            "rows_without_image", "warning", scan.rows_without_image,
            f"{count(len(scan.rows_without_image), 'row')} of the table of captions without an image (such "
            f"as {scan.rows_without_image[0]}): correct the names, or take the rows out.",
        )  # fmt: skip
    if scan.not_unicode:
        names = tuple(path.name for path in scan.not_unicode)
        yield Finding(
            "not_unicode", "advice", names,
            f"{count(len(names), 'caption file', 'is', 'are')} not UTF-8 (such as {names[0]}), and the encoding was "
            "guessed: "
            "look whether the text is right, and save it as UTF-8.",
        )  # fmt: skip
