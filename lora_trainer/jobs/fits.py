"""Settings that cannot count on the base at hand: by its family, or because a WebUI lends it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

from lora_trainer.config.applies import OR
from lora_trainer.config.leaves import leaves
from lora_trainer.config.load import ConfigError, Fault
from lora_trainer.config.options import RunConfig
from lora_trainer.config.values import shown
from lora_trainer.contracts import Family, LentModel


def unoffered(family: Family, lent: LentModel) -> list[str]:
    """Paths of the settings that change nothing on this base."""
    return [
        leaf.path for leaf in leaves()
        if (leaf.option.families and family.name not in leaf.option.families)
        or (leaf.option.own_base and not lent.owned)
    ]  # fmt: skip


def check_fits(config: RunConfig, family: Family, lent: LentModel, done: dict[str, Any]) -> None:
    """Raise ConfigError for such settings that were changed; `done` are the values that count in their place, by path,
    which may be asked for too."""
    faults = list(_faults(config, family, lent, done))
    if faults:
        raise ConfigError(faults)


def _faults(config: RunConfig, family: Family, lent: LentModel, done: dict[str, Any]) -> Iterator[Fault]:
    known = {leaf.path: leaf for leaf in leaves()}
    for path in unoffered(family, lent):
        leaf = known[path]
        value: Any = reduce(getattr, path.split("."), config)
        if value in (leaf.default, done.get(path, leaf.default)):
            continue
        if leaf.option.own_base and not lent.owned:
            held = f" as {done[path]}" if path in done else ""
            why = f"the WebUI holds {lent.name}{held}, and it is trained upon as it is"
        else:
            why = f"it counts only for a base of the family {OR.join(leaf.option.families)}, and {lent.name} is " + (
                f"{family.name} ({family.title})"
            )
        yield Fault(path, f"is {shown(value)}, but {why}; leave it out")
