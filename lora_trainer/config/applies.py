"""When a setting counts: with which values of the others, and on which base. Said once, beside the option.

From there `load` refuses a setting that would change nothing, the form does not offer it, and the pages say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.options import GIVEN, OR, Option, RunConfig

ValueAt = Callable[[str], Any]  # the value of the setting at a path


class Needed(NamedTuple):
    """What one setting needs of others: any one of `paths` has any of `values`, or, `but`, none of them."""

    paths: tuple[str, ...]
    values: tuple[Any, ...]  # GIVEN: whatever is not empty, 0 or off
    but: bool = False

    def met(self, value_at: ValueAt) -> bool:
        """Whether it is so."""
        return any(self._by(value_at(path)) for path in self.paths)

    def _by(self, value: Any) -> bool:
        return bool(value) if self.values == GIVEN else (value in self.values) != self.but

    @property
    def words(self) -> str:
        """ "network.kind is lora or locon"."""
        paths = OR.join(self.paths)
        if self.values == GIVEN:
            return f"{paths} is given"
        return f"{paths} is {'not ' if self.but else ''}{OR.join(map(_word, self.values))}"

    @property
    def remedy(self) -> str:
        """What to set, as the end of a sentence."""
        first = self.paths[0]
        if self.values == GIVEN:
            return f"set {OR.join(self.paths)}"
        return f"change {first}" if self.but else f"set {first}: {_word(self.values[0])}"


def needs(option: Option, *, lent: bool = False) -> tuple[Needed, ...]:
    """All that must be so for the setting to count; `lent` as in `counts`."""
    wanted = [Needed(tuple(path.split(OR)), values) for path, values in (option.applies or {}).items()]
    unwanted = [Needed((path,), values, True) for path, values in (option.unless or {}).items()]
    named = [Needed(("model.base",), GIVEN)] if lent and option.own_base else []
    return (*wanted, *unwanted, *named)


def counts(leaf: Leaf, value_at: ValueAt, *, lent: bool = False) -> bool:
    """Whether the setting can change anything, as far as the other settings tell.

    `lent`: in a WebUI, whose own model is trained upon where model.base is empty.
    """
    return all(need.met(value_at) for need in needs(leaf.option, lent=lent))


def without_idle(values: Mapping[str, Any], of: type = RunConfig, *, lent: bool = False) -> dict[str, Any]:
    """The settings that count with each other. One that is left out may be what another one counted with."""
    known = {leaf.path: leaf for leaf in leaves(of)}

    def value_at(path: str) -> Any:
        return values.get(path, known[path].default)

    kept = {path: value for path, value in values.items() if counts(known[path], value_at, lent=lent)}
    return kept if len(kept) == len(values) else without_idle(kept, of, lent=lent)


def letting(leaf: Leaf, of: type = RunConfig) -> dict[str, Any]:
    """Values of other settings, by path, with which this one counts; empty where it always does."""
    known = {one.path: one for one in leaves(of)}
    found: dict[str, Any] = {}
    for need in needs(leaf.option):
        if not need.met(lambda path: known[path].default):
            path = need.paths[0]
            found[path] = _some(known[path]) if need.values == GIVEN else need.values[0]
            found |= letting(known[path], of)
    return found


def refusals(values: Mapping[str, Any], known: Mapping[str, Leaf]) -> Iterator[tuple[str, str, Needed]]:
    """(path, value's path, what is lacking) of each setting in `values` that differs from its default and is idle."""

    def value_at(path: str) -> Any:
        return values.get(path, known[path].default)

    for path, value in values.items():
        if value != known[path].default:
            for need in needs(known[path].option):
                if not need.met(value_at):
                    yield path, need.paths[0], need


def told(leaf: Leaf) -> str:
    """A sentence on when it counts; empty where it always does."""
    parts = [need.words for need in needs(leaf.option)]
    if leaf.option.families:
        parts.append(f"the base is of the family {OR.join(leaf.option.families)}")
    if leaf.option.own_base:
        parts.append("the run reads the base itself, since a WebUI's is taken as it holds it")
    return f"Counts only where {' and '.join(parts)}." if parts else ""


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "empty" if value in ("", (), None) else str(value)


def _some(leaf: Leaf) -> Any:
    """Any value that is not empty."""
    if leaf.type is bool:
        return True
    if leaf.type is str:
        return ["something"] if leaf.many else "something"
    return leaf.type(leaf.option.high or 1)
