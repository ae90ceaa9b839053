"""From what a file, a flag or a form gives for one setting to its value, or a sentence that says why not.

Other spellings of the same value are read: "8" and 8.0 for 8, "2e-4" (text, to YAML, for want of a point), YAML 1.1's
bare `no` for the choice "no", one prompt for a list of one. A value is never bent: 8.5 is no rank.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from lora_trainer.config.leaves import Leaf

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_SQUARE = re.compile(r"(\d+)\s*[,x*]\s*(\d+)", re.IGNORECASE)
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML 1.1's booleans


class Unfit(ValueError):
    """A value that a setting cannot take; the text says why and what fits, without the setting's name."""


def value_of(leaf: Leaf, raw: Any) -> Any:
    """The setting's value as its class wants it.

    An empty value (None or "") is None where the setting may be empty, which is also how a flag takes a value of the
    file away. Raises Unfit.
    """
    if raw is None or (raw == "" and leaf.type is not str) or (raw == "" and leaf.optional):
        if leaf.optional:
            return None
        raise Unfit(f"is empty; leave it out to take the default, {shown(leaf.default)}")
    if leaf.path == "data.resolution":
        raw = _side(raw)
    if leaf.many:
        return _items(leaf, raw)
    return _single(leaf, raw)


def _single(leaf: Leaf, raw: Any) -> Any:
    if leaf.choices:
        return _choice(leaf, raw)
    readers: dict[type, Callable[[Any], Any]] = {bool: _truth, int: _whole, float: _number, str: _text}
    value = readers[leaf.type](raw)
    low, high = leaf.option.low, leaf.option.high
    if (low is not None and value < low) or (high is not None and value > high):
        raise Unfit(f"is {shown(raw)}, outside of {bounds(leaf)}")
    return value


def bounds(leaf: Leaf) -> str:
    """ "1 to 1024 px", "at least 1", or nothing."""
    low, high, unit = leaf.option.low, leaf.option.high, leaf.option.unit
    if low is None and high is None:
        return ""
    if high is None or low is None:
        span = f"at least {low}" if high is None else f"at most {high}"
    else:
        span = f"{_plain(low)} to {_plain(high)}"
    return f"{span} {unit}".rstrip()


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def _items(leaf: Leaf, raw: Any) -> tuple[Any, ...]:
    if isinstance(raw, str):
        return (raw,)
    if leaf.option.pairs and isinstance(raw, Mapping):
        raw = [f"{name} = {value}" for name, value in cast("Mapping[Any, Any]", raw).items()]
    if not isinstance(raw, list | tuple):
        raise Unfit(f"is {shown(raw)}, but a list is wanted, one item a line with '- ' in front")
    return tuple(_single(leaf, item) for item in cast("list[Any]", raw))


def _choice(leaf: Leaf, raw: Any) -> str:
    if isinstance(raw, bool):  # a bare `no` or `yes` in YAML 1.1
        raw = "yes" if raw else "no"
    word = (leaf.option.synonyms or {}).get(raw, raw) if isinstance(raw, str) else raw
    if word in leaf.choices:
        return cast(str, word)
    near = difflib.get_close_matches(str(raw).lower(), leaf.choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise Unfit(f"is {shown(raw)}, which is none of {', '.join(leaf.choices)}{hint}")


def _truth(raw: Any) -> bool:
    value = _WORDS.get(raw.lower()) if isinstance(raw, str) else raw
    if not isinstance(value, bool):
        raise Unfit(f"is {shown(raw)}; write true or false")
    return value


def _number(raw: Any) -> float:
    value = float(raw) if isinstance(raw, str) and _NUMBER.fullmatch(raw.strip()) else raw
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(f"is {shown(raw)}, but a number is wanted")
    try:
        value = float(value)
    except OverflowError as error:
        raise Unfit(f"is {shown(raw)}, too large for any setting") from error
    if not math.isfinite(value):
        raise Unfit(f"is {shown(raw)}, but a finite number is wanted")
    return value


def _whole(raw: Any) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw  # not by way of a float, which would round large seeds
    value = _number(raw)
    if value != int(value):
        raise Unfit(f"is {shown(raw)}, but a whole number is wanted")
    return int(value)


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise Unfit(f"is {shown(raw)}, but text is wanted; put it in quotes")
    if "\0" in raw:
        raise Unfit("holds a zero character, which no path and no prompt may")
    return raw


def _side(raw: Any) -> Any:
    """The side of a square from the "512,512", "512x512" and [512, 512] of other trainers' files."""
    if isinstance(raw, list | tuple):
        pair = [*cast("list[Any]", raw)]
    elif isinstance(raw, str) and (found := _SQUARE.fullmatch(raw.strip())):
        pair = [*found.groups()]
    else:
        return cast(Any, raw)
    if len(pair) != 2 or str(pair[0]) != str(pair[1]):
        raise Unfit(
            f"is {shown(raw)}, but one side is wanted: images keep their own shapes, sorted into buckets that all"
            " have the area of a square of this side"
        )
    return pair[0]


def shown(value: Any) -> str:
    """A value as it stands in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
