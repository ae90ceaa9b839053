"""Edits of many captions at once: what becomes of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lora_trainer.contracts import PlainError
from lora_trainer.data.captions import one_line, with_trigger

Action = Literal["replace", "prepend", "append", "remove", "set", "trim_doubles"]
ACTIONS: tuple[Action, ...] = ("replace", "prepend", "append", "remove", "set", "trim_doubles")

PATIENCE = 5.0  # seconds that a regular expression gets for all captions: thousands of times what an honest one needs
LONGEST = 20_000  # letters of a caption: some hundred times what a text encoder reads of it


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is to be done to captions."""

    action: Action
    find: str = ""  # for replace and remove
    replacement: str = ""  # for replace
    text: str = ""  # for prepend, append and set
    regex: bool = False  # `find` is a regular expression, `replacement` may name its groups
    whole_tag: bool = False  # `find` is matched against each tag between commas, not within them

    def sentence(self, count: int) -> str:
        """What was done, for the one who may want it undone."""
        captions = "1 caption" if count == 1 else f"{count} captions"
        return {
            "replace": f"{self.find!r} replaced by {self.replacement!r} in {captions}.",
            "remove": f"{self.find!r} removed from {captions}.",
            "prepend": f"{self.text!r} put before {captions}.",
            "append": f"{self.text!r} put behind {captions}.",
            "set": f"{captions} set to {self.text!r}.",
            "trim_doubles": f"Repeated tags taken out of {captions}.",
        }[self.action]


def edited(edit: Edit, captions: Mapping[str, str]) -> dict[str, str]:
    """Those captions, by name of their images, that become others. Raises PlainError where the edit cannot be made."""
    worker = _worker(edit)
    after = {name: _tidy(caption, worker(caption)) for name, caption in captions.items()}
    long = next((name for name, caption in after.items() if len(caption) > LONGEST), None)
    if long is not None:
        raise PlainError(
            f"The caption of {long} would have {len(after[long]):,} letters, and {LONGEST:,} are the most that is "
            "taken; look at what is put in."
        )
    return {name: caption for name, caption in after.items() if caption != captions[name]}


def tags_of(caption: str) -> list[str]:
    """What stands between commas."""
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def _worker(edit: Edit) -> Callable[[str], str]:
    if edit.action in ("replace", "remove"):
        if not edit.find:
            raise PlainError(f"Nothing is named that {edit.action} shall look for; give find.")
        change = _regex(edit) if edit.regex else _plain(edit)
        return _by_tag(change) if edit.whole_tag else change
    if edit.action == "trim_doubles":
        return lambda caption: ", ".join(dict.fromkeys(tags_of(caption)))
    text = one_line(edit.text)
    if edit.action == "set":
        return lambda caption: text
    if not text:
        raise PlainError(f"Nothing is given to {edit.action}; give text.")
    if edit.action == "prepend":
        return lambda caption: with_trigger(caption, text.strip(" ,"))
    return lambda caption: _with_behind(caption, text.strip(" ,"))


def _with_behind(caption: str, text: str) -> str:
    if caption == text or caption.endswith((f", {text}", f",{text}")):
        return caption
    return f"{caption.rstrip(' ,')}, {text}" if caption else text


def _plain(edit: Edit) -> Callable[[str], str]:
    new = edit.replacement if edit.action == "replace" else ""
    if edit.whole_tag:
        wanted = edit.find.strip()
        return lambda tag: new if tag == wanted else tag
    return lambda caption: caption.replace(edit.find, new)


def _by_tag(change: Callable[[str], str]) -> Callable[[str], str]:
    """The change made to each tag; a caption in which no tag changes keeps its spacing."""

    def worker(caption: str) -> str:
        before = tags_of(caption)
        after = [change(tag) for tag in before]
        return caption if after == before else ", ".join(tag for tag in after if tag.strip())

    return worker


def _regex(edit: Edit) -> Callable[[str], str]:
    """By the package regex rather than re: it can be stopped, and lets other threads run meanwhile."""
    import regex

    try:
        pattern = regex.compile(edit.find)
    except (regex.error, RecursionError, OverflowError) as error:
        raise PlainError(f"find is {edit.find!r}, which is no regular expression ({error}); correct it.") from error
    new = edit.replacement if edit.action == "replace" else ""
    until = time.monotonic() + PATIENCE

    def worker(text: str) -> str:
        left = max(until - time.monotonic(), 1e-3)
        try:
            if edit.whole_tag and not pattern.fullmatch(text, timeout=left, concurrent=True):
                return text
            return pattern.sub(new, text, timeout=left, concurrent=True)
        except TimeoutError as error:
            raise PlainError(
                f"The regular expression {edit.find!r} was not through with these captions after {PATIENCE:g} "
                "seconds; repetitions within repetitions, such as (a+)+, can take for ever: write it without."
            ) from error
        except (regex.error, IndexError) as error:
            raise PlainError(
                f"replacement is {new!r}, which does not fit the expression ({error}); \\1 is its first group, and a "
                "backslash is written \\\\."
            ) from error

    return worker


def _tidy(before: str, after: str) -> str:
    """One line, without what the edit left of places between commas; what was odd before it is no business of ours."""
    if before == after:
        return after
    after = one_line(after)
    if after.count(" ,") > before.count(" ,"):
        after = after.replace(" ,", ",")
    if _gaps(after) > _gaps(before):
        after = ", ".join(tags_of(after))
    return after


def _gaps(caption: str) -> int:
    return sum(not tag.strip() for tag in caption.split(",")) if caption else 0
