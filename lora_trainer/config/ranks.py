"""Rank and alpha of single layers: "mid_block = 32" or "mid_block = 32/16", the first pattern that is found counts.

kohya's scripts and LyCORIS have lists of 25 numbers (`block_dims`), one for each block of SD1, which name nothing and
fit no other family. A pattern says which layers it means, in the names that `inspect` shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_RULE = re.compile(r"\s*(?P<pattern>\S.*?)\s*[=:]\s*(?P<rank>\d+)(?:\s*/\s*(?P<alpha>\d+(?:\.\d*)?|\.\d+))?\s*")
HIGHEST = 1024  # as network.rank


class NoRule(ValueError):
    """Text that is no pattern or no rule; says why, without the setting's name."""


class RankRule(NamedTuple):
    """What one line of `network.ranks` says."""

    pattern: re.Pattern[str]  # searched for in "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    rank: int  # 0: such layers are not trained
    alpha: float | None  # None: in the same proportion to the rank as everywhere else


class Size(NamedTuple):
    """Rank and alpha of one layer."""

    rank: int
    alpha: float


def pattern_of(text: str) -> re.Pattern[str]:
    """The regular expression. Raises NoRule."""
    try:
        return re.compile(text)
    except re.error as error:
        raise NoRule(f"{text!r} is no regular expression ({error})") from error


def rule_of(text: str) -> RankRule:
    """Read "pattern = rank" or "pattern = rank/alpha". Raises NoRule."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise NoRule(f"{text!r} is neither 'pattern = rank' nor 'pattern = rank/alpha', such as 'mid_block = 32'")
    rank, alpha = int(found["rank"]), float(found["alpha"]) if found["alpha"] else None
    if rank > HIGHEST:
        raise NoRule(f"{text!r} asks for the rank {rank}, and the highest is {HIGHEST}")
    if alpha == 0:
        raise NoRule(f"{text!r} asks for the alpha 0, with which nothing is learnt; the rank 0 leaves layers out")
    return RankRule(pattern_of(found["pattern"]), rank, alpha)


def size_of(name: str, rules: Iterable[RankRule], rank: int, alpha: float) -> Size:
    """Rank and alpha of the layer `name` by the first rule that is found in it, else the network's own."""
    for rule in rules:
        if rule.pattern.search(name):
            return Size(rule.rank, rule.alpha if rule.alpha is not None else alpha * rule.rank / rank)
    return Size(rank, alpha)


def unused(names: Sequence[str], rules: Iterable[RankRule]) -> list[str]:
    """The patterns that are found in no name."""
    return [rule.pattern.pattern for rule in rules if not any(rule.pattern.search(name) for name in names)]
