"""One setting as a field of the form: its label, its component, and the way of its value in and out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from lora_trainer.config.applies import needs, without_idle
from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.options import GIVEN, RunConfig
from lora_trainer.config.tasks import IMAGES, applies
from lora_trainer.config.values import Unfit, value_of
from lora_trainer.contracts import Host
from lora_trainer.hosts.standalone import Standalone

_LINES = 2  # of a text field that takes a list, one item a line


def lends(host: Host) -> bool:
    """Whether the host has a model of its own loaded, so that none need be named."""
    return not isinstance(host, Standalone)


def elem_id(path: str) -> str:
    """The id of a setting's element in the page: "network.rank" is "lt_network_rank"."""
    return "lt_" + path.replace(".", "_")


def label(leaf: Leaf) -> str:
    """The setting's name in words, with its unit: "Save steps (steps)" would stammer and is "Save steps"."""
    words = leaf.path.rpartition(".")[2].replace("_", " ").capitalize()
    words = words.replace("snr", "SNR")
    unit = leaf.option.unit
    return f"{words} ({unit})" if unit and unit not in words.lower() else words


def component(leaf: Leaf, value: Any, **more: Any) -> Any:
    """The gradio component of a setting, showing `value` (as in a RunConfig).

    Numbers are text: gradio 3's number field shows an empty one as 0, and a slider would bend what `load` judges.
    """
    properties: dict[str, Any] = {
        "label": label(leaf), "info": leaf.option.help, "elem_id": elem_id(leaf.path), "value": shown(leaf, value)
    }  # fmt: skip
    properties |= more
    if leaf.choices:
        choices = ["", *leaf.choices] if leaf.optional else list(leaf.choices)
        made = gr.Dropdown(choices=choices, **properties)
    elif leaf.type is bool:
        made = gr.Checkbox(**properties)
    else:
        if leaf.type is str:
            properties["elem_classes"] = ["lt-wide"]  # paths and prompts want the whole line
        elif leaf.optional:
            properties.setdefault("placeholder", "automatic")
        made = gr.Textbox(lines=_LINES, **properties) if leaf.many else gr.Textbox(lines=1, max_lines=1, **properties)
    return unsaved(made)


def unsaved(made: Any) -> Any:
    """The component, left out of A1111's ui-config.json, which would keep today's defaults for ever."""
    made.do_not_save_to_config = True
    return made


def shown(leaf: Leaf, value: Any) -> Any:
    """A value of the configuration as its component shows it."""
    if leaf.many:
        return "\n".join(_on_one_line(str(item)) for item in value or ())
    if value is None:
        return ""
    return value if isinstance(value, bool) else str(value)


def read(leaf: Leaf, value: Any) -> Any:
    """What stands in a component, as `load` takes it; None for an empty field."""
    if leaf.many:
        return [_as_it_was(line) for line in str(value or "").split("\n") if line.strip()]
    return None if value is None or value == "" else value


def _on_one_line(item: str) -> str:
    """An item of a list with its line breaks written as \\n; a \\n that was in it gets a second backslash."""
    return item.replace("\\n", "\\\\n").replace("\n", "\\n")


def _as_it_was(line: str) -> str:
    return re.sub(r"\\(\\n|n)", lambda found: found[1] if found[1] != "n" else "\n", line)


def raw_of(values: Mapping[str, Any], *, lent: bool = False) -> dict[str, Any]:
    """What the fields say, by path, for `load`: settings that are empty or stand at their default are left out.

    So is what does not count with the others, since the page does not show it. `lent` as in `applies.counts`.
    """
    raw: dict[str, Any] = {}
    for leaf in leaves():
        if leaf.path not in values:
            continue
        found = _value(leaf, read(leaf, values[leaf.path]))
        default = list(leaf.default) if leaf.many else leaf.default
        unsaid = found is None and not (leaf.optional and leaf.default is not None)
        if not unsaid and found != default:
            raw[leaf.path] = found
    return without_idle(raw, lent=lent)


def rules(*, lent: bool) -> dict[str, list[dict[str, Any]]]:
    """For the page's script: by element what must stand in other elements for it to be shown. `lent` as above.

    Values as the elements have them; null stands for anything but empty, 0 and off.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for leaf in leaves():
        for need in needs(leaf.option, lent=lent):
            values = None if need.values == GIVEN else [_in_element(value) for value in need.values]
            rule = {"of": [elem_id(path) for path in need.paths], "values": values, "but": need.but}
            found.setdefault(elem_id(leaf.path), []).append(rule)
    return found


def looked_at(values: Mapping[str, Any]) -> dict[str, str]:
    """For the page's script: what is held by the elements that `rules` look at, of form values by path.

    Newer gradio keeps a field out of the page until its fold is opened, and the script must know it all the same.
    """
    paths = {path for leaf in leaves() for need in needs(leaf.option, lent=True) for path in need.paths}
    return {elem_id(path): _in_element(values[path]) for path in sorted(paths & values.keys())}


def _in_element(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value in ((), None) else str(value)


def _value(leaf: Leaf, found: Any) -> Any:
    """The number behind a text, so that it can be compared; what is none stays as it is, for `load` to tell."""
    if found is None or leaf.many:
        return found
    try:
        return value_of(leaf, found)
    except Unfit:
        return _several(leaf, found)


def _several(leaf: Leaf, found: Any) -> Any:
    """The numbers in "8, 16, 32", which ask for a run with each; anything else as it is.

    Between numbers with a point a comma needs its blank: "0,5" is how half of the world writes one half.
    """
    between = r"\s*[,;]\s*" if leaf.type is int else r"\s*;\s*|,\s+"
    parts = re.split(between, str(found).strip()) if leaf.type in (int, float) else []
    try:
        return [value_of(leaf, part) for part in parts] if len(parts) > 1 else found
    except Unfit:
        return found


def takes_several(path: str) -> bool:
    """Whether the setting's field is one for numbers, in which several can be written."""
    return any(leaf.path == path and leaf.type in (int, float) and not leaf.choices for leaf in leaves())


def shown_of(config: RunConfig) -> dict[str, Any]:
    """What every field shows for a configuration, by path."""
    return {leaf.path: shown(leaf, value_at(config, leaf.path)) for leaf in leaves()}


def value_at(config: RunConfig, path: str) -> Any:
    """The configuration's value of one setting."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def sectioned(skip: Iterable[str] = ()) -> dict[str, tuple[Sequence[Leaf], Sequence[Leaf]]]:
    """(plain, advanced) settings of an image model by section, in the order of their definition, without `skip`."""
    left_out = set(skip)
    found: dict[str, tuple[list[Leaf], list[Leaf]]] = {}
    for leaf in leaves():
        if leaf.path not in left_out and applies(leaf, IMAGES):
            found.setdefault(leaf.section, ([], []))[leaf.option.advanced].append(leaf)
    return dict(found)


def folds(skip: Iterable[str] = ()) -> dict[str, list[str]]:
    """For the page's script: by element of a fold the elements in it, without the settings in `skip`."""
    found: dict[str, list[str]] = {}
    for section, (plain, advanced) in sectioned(skip).items():
        found[elem_id(f"fold.{section or 'run'}")] = [elem_id(leaf.path) for leaf in (*plain, *advanced)]
        if advanced:
            found[elem_id(f"more.{section}")] = [elem_id(leaf.path) for leaf in advanced]
    return found
