"""The one walk over the options; loading, flags, schema, docs and form are all read off it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from lora_trainer.config.options import Option, RunConfig


class Leaf(NamedTuple):
    """One setting, with everything that any surface needs to know of it."""

    path: str  # "network.rank"
    type: type  # int, float, bool or str: of the value, or of its items where `many`
    choices: tuple[str, ...]  # empty unless the type is a Literal
    optional: bool  # None is allowed and means "resolved later"
    many: bool  # a tuple of items
    default: Any
    option: Option

    @property
    def section(self) -> str:
        """ "network" of "network.rank"; empty for a setting of the run itself."""
        return self.path.rpartition(".")[0]


def leaves(of: type = RunConfig, prefix: str = "") -> Iterator[Leaf]:
    """Every setting of a configuration class, in the order of its definition."""
    hints, inner = get_type_hints(of), sections(of)
    for field in fields(of):
        path = prefix + field.name
        if field.name in inner:
            yield from leaves(inner[field.name], f"{path}.")
        else:
            yield _leaf(path, hints[field.name], field.default, field.metadata["option"])


def sections(of: type = RunConfig) -> dict[str, type]:
    """Class of each section by its name, such as "network"."""
    hints: dict[str, type] = get_type_hints(of)
    return {name: hint for name, hint in hints.items() if is_dataclass(hint)}


def _leaf(path: str, hint: Any, default: Any, option: Option) -> Leaf:
    inner: tuple[Any, ...] = get_args(hint)
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in inner
    if optional:
        (hint,) = (member for member in inner if member is not type(None))
        inner = get_args(hint)
    many = get_origin(hint) is tuple
    choices = inner if get_origin(hint) is Literal else ()
    kind = inner[0] if many else str if choices else hint
    return Leaf(path, kind, choices, optional, many, default, option)
