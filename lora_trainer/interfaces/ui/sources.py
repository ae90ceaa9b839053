"""Where settings can be brought into the form from: YAML text, a LoRA, an earlier job, the browser's memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_trainer.config.load import LARGEST_FILE, load, load_recipe, read_yaml
from lora_trainer.config.options import RunConfig
from lora_trainer.config.presets import STRENGTHS
from lora_trainer.config.sweep import apart
from lora_trainer.config.tasks import TEXT
from lora_trainer.contracts import HostPaths, PlainError
from lora_trainer.interfaces.ui.answers import continued
from lora_trainer.interfaces.ui.fields import raw_of, shown_of

if TYPE_CHECKING:
    from lora_trainer.jobs.registry import Registry

# A LoRA tells only the last part of these, and the folder of the form is the one that is there.
_OF_THE_MACHINE = ("data.folder", "data.metadata", "model.base", "output.directory", "output.name")


class Brought(NamedTuple):
    """Settings for the form."""

    config: RunConfig
    note: str  # what was done: "settings", "lora", "train on"; "" where nothing need be said
    strength: str | None = None
    lists: Mapping[str, list[Any]] = {}  # by path: where several values are to be tried
    left: tuple[str, ...] = ()  # paths of settings that change nothing with the others, and were not taken over


def brought(order: Mapping[str, Any], values: Mapping[str, Any], registry: Registry, paths: HostPaths) -> Brought:
    """The settings that the browser asks for: {"from": "text" | "recipe" | "job" | "form", ...}. Raises PlainError.

    `values` are those of the form now, of which some stay when the source cannot know them.
    """
    source, name = order["from"], str(order.get("name") or "The text")
    if source == "job":
        return Brought(load(continued(registry, order["id"])), "train on")
    if source == "form":
        strength = order.get("strength")
        raw, lists = apart(order["raw"])
        return Brought(load(raw), "", strength if strength in {one.name for one in STRENGTHS} else None, lists)
    text = str(order["text"])
    if len(text) > LARGEST_FILE:
        raise PlainError(f"{name} is too long for a configuration; choose a YAML file or a LoRA.")
    if source == "recipe":
        return _from_recipe(_parsed(text, name), values)
    line = text.strip().strip('"')
    if line.endswith(".safetensors") and "\n" not in line:
        return _from_recipe(_recipe_of(line, paths), values)
    raw, lists = apart(read_yaml(text, name))
    config = load(raw)
    if config.task == TEXT:
        raise PlainError(f"{name} trains a language model; bring it into the view 'Language model'.")
    if not config.model.base:  # as it is where a WebUI lends its model: the form's stays
        config = load(raw_of(shown_of(config) | {"model.base": values["model.base"]}))
    return Brought(config, "settings", lists=lists)


def _from_recipe(recipe: Mapping[str, Any], values: Mapping[str, Any]) -> Brought:
    config, left = load_recipe(recipe)
    if config.task == TEXT:
        raise PlainError("This adapter is for a language model, and its settings are not for this view.")
    config = load(raw_of(shown_of(config) | {path: values[path] for path in _OF_THE_MACHINE}))
    return Brought(config, "lora", left=left)


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise PlainError(f"The recipe in {name} cannot be read ({error}); set the form by hand.") from error
    if not isinstance(recipe, dict):
        raise PlainError(f"{name} carries no recipe of this trainer; set the form by hand.")
    return recipe


def _recipe_of(named: str, paths: HostPaths) -> dict[str, Any]:
    """The recipe of a LoRA by its path, or by its name in the folder of LoRA."""
    from lora_trainer.jobs.inspect import recipe_in
    from lora_trainer.jobs.limits import check_allowed

    path = Path(named).expanduser()
    if not path.is_absolute() and paths.loras is not None:
        path = paths.loras / path
    if not path.is_file():
        raise PlainError(f"There is no LoRA {path}; check the spelling.")
    if not paths.at_the_machine:
        check_allowed(str(path), paths, "The LoRA")
    recipe = recipe_in(path)
    if not recipe:
        raise PlainError(f"{path.name} carries no recipe of this trainer; set the form by hand.")
    return recipe
