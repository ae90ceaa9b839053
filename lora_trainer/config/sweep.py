"""Lists of values where one is wanted: `network.rank: [8, 16]` asks for a run with each.

Lists of several settings are crossed. Every run gets a label from what varies, which names its LoRA and its folder.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.load import ConfigError, Fault, flat_settings, load
from lora_trainer.config.options import RunConfig
from lora_trainer.config.values import Unfit, value_of

SEED = 42  # of every run where none is given: runs of one sweep should differ in nothing but what varies
MOST_RUNS = 100  # of one sweep: beyond it a list was meant otherwise, or nobody waits for its end
_NO_LETTER = re.compile(r"[^\w.+-]+")
_LONGEST = 24  # letters of one value in a label, so that the label stays a file's name


class Variant(NamedTuple):
    """One run of a sweep."""

    label: str  # "rank8-learning_rate0.0001"
    values: dict[str, Any]  # by path: what varies, as it was given
    raw: dict[str, Any]  # the settings of the run, for `load`, under its own name and folder


def apart(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The settings with the first of each list in its place, and the lists by path; for a form that shows both.

    Raises ConfigError where one name has two values.
    """
    settings = flat_settings(raw)
    by_name = _leaves_by_name()
    lists = {name: value for name, value in settings.items() if value and _varies(by_name.get(name), value)}
    first = {name: values[0] for name, values in lists.items()}
    return settings | first, {by_name[name].path: values for name, values in lists.items()}


def variants(raw: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> tuple[Variant, ...]:
    """Every run that the settings ask for, in the order of their lists; none where no setting has a list of values.

    `over` as in `load`. Raises ConfigError with the faults of every run, each told once.
    """
    settings = flat_settings(raw, over)
    by_name = _leaves_by_name()
    varying = {name: value for name, value in settings.items() if _varies(by_name.get(name), value)}
    if not varying:
        return ()
    _check(varying, by_name)
    words = _words([by_name[name].path for name in varying])
    found: list[Variant] = []
    faults: dict[Fault, None] = {}
    for chosen in itertools.product(*varying.values()):
        values = {by_name[name].path: value for name, value in zip(varying, chosen, strict=True)}
        label = "-".join(f"{words[path]}{_spelled(value)}" for path, value in values.items())
        one = settings | dict(zip(varying, chosen, strict=True))
        try:
            found.append(Variant(label, values, _placed(one, load(one), label)))
        except ConfigError as error:
            faults |= dict.fromkeys(error.faults)
    if faults:
        raise ConfigError(list(faults))
    doubles = sorted({one.label for one in found if sum(one.label == other.label for other in found) > 1})
    if doubles:
        raise ConfigError([Fault(next(iter(varying)), f"gives two runs the same name, {doubles[0]}; list it once")])
    return tuple(found)


def _leaves_by_name() -> dict[str, Leaf]:
    return {name: leaf for leaf in leaves() for name in (leaf.path, leaf.option.alias) if name}


def _varies(leaf: Leaf | None, value: Any) -> bool:
    """Whether a list stands where the setting takes one value, and cannot be read as that value."""
    if leaf is None or leaf.many or not isinstance(value, list):
        return False
    try:
        value_of(leaf, value)
    except Unfit:
        return True
    return False


def _check(varying: Mapping[str, list[Any]], by_name: Mapping[str, Leaf]) -> None:
    faults: list[Fault] = []
    for name, values in varying.items():
        if not values:
            faults.append(Fault(name, "is an empty list; give it a value, or several to try each"))
        if by_name[name].section == "output" or by_name[name].path == "task":
            faults.append(Fault(name, "has several values, but it cannot vary within one sweep; give one"))
    runs = math.prod(len(values) for values in varying.values())
    if runs > MOST_RUNS:
        text = f"and the other lists ask for {runs:,} runs, more than {MOST_RUNS}; shorten the lists"
        faults.append(Fault(next(iter(varying)), text))
    if faults:
        raise ConfigError(faults)


def _words(paths: list[str]) -> dict[str, str]:
    """What a setting is called in a label: its own name where that is enough, else with its section."""
    last = {path: path.rpartition(".")[2] for path in paths}
    names = list(last.values())
    return {path: name if names.count(name) == 1 else path.replace(".", "_") for path, name in last.items()}


def _spelled(value: Any) -> str:
    """A value as part of a file's name; of a path its last part."""
    text = Path(value).name if isinstance(value, str) and ("/" in value or "\\" in value) else str(value)
    return _NO_LETTER.sub("_", text).strip("._")[:_LONGEST] or "empty"


def _placed(raw: Mapping[str, Any], config: RunConfig, label: str) -> dict[str, Any]:
    """The settings with a name of the run's own, a folder in the one that is given, and the sweep's seed."""
    names = {"output.name", "output_name", "output.directory", "output_dir"}
    placed = {name: value for name, value in raw.items() if name not in names}
    directory = config.output.directory
    name = config.output.name or (Path(directory).expanduser().resolve().name if directory else _named_by_data(config))
    if config.train.seed is None:
        placed = {key: value for key, value in placed.items() if key not in ("train.seed", "seed")}
        placed["train.seed"] = SEED
    placed["output.name"] = f"{name}-{label}"
    if directory:
        placed["output.directory"] = str(Path(directory) / label)
    return placed


def _named_by_data(config: RunConfig) -> str:
    folder = config.data.folder
    return (Path(folder).expanduser().resolve().name if folder else "") or "my_lora"
