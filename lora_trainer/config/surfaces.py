"""What is read off the options: command-line flags, a JSON schema, and the table in docs/options.md.

`python -m lora_trainer.config.surfaces` writes docs/options.md anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_trainer.config.applies import told
from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.options import VERSION, RunConfig
from lora_trainer.config.tasks import IMAGES, TEXT, applies
from lora_trainer.config.values import bounds

__all__ = ["add_flags", "captions_table", "flags_of", "json_schema", "leaves", "options_page", "options_table"]

TITLES = {  # section: heading of its group in `train --help` and docs/options.md
    "": "run",
    "model": "base model",
    "data": "images and captions",
    "network": "network",
    "train": "training",
    "optimizer": "optimizer",
    "objective": "loss, noise and timesteps",
    "slider": "slider from two prompts or two folders",
    "validation": "held-out images",
    "output": "output",
    "samples": "samples while training",
    "text": "language models only",
}


def add_flags(parser: argparse.ArgumentParser, of: type = RunConfig, titles: Mapping[str, str] = TITLES) -> None:
    """A flag for every setting, `--network.rank 8`, and for its flat name, `--lora_rank 8`.

    Values stay text and go through `load`, so that a flag and a file are judged by the same rules. A switch takes a
    word, `--data.flip true`, so that a flag can also turn off what a file turns on; a list takes several words,
    `--samples.prompts "a cat" "a dog"`; an empty word, `--train.epochs ""`, empties what a file sets.
    """
    plain = {section: parser.add_argument_group(title) for section, title in titles.items()}
    advanced = parser.add_argument_group("advanced", "Settings that seldom need a change.")
    for leaf in leaves(of):
        group = advanced if leaf.option.advanced else plain[leaf.section]
        names = [f"--{leaf.path}", *([f"--{leaf.option.alias}"] if leaf.option.alias else [])]
        names = list(dict.fromkeys(names))
        group.add_argument(
            *names,
            dest=leaf.path,
            nargs="*" if leaf.many else None,
            metavar=_metavar(leaf),
            default=argparse.SUPPRESS,  # only what was typed is in the result
            help=_help(leaf).replace("%", "%%"),
        )


def flags_of(typed: argparse.Namespace, of: type = RunConfig) -> dict[str, Any]:
    """The settings among parsed arguments, by path, for `load`."""
    paths = {leaf.path for leaf in leaves(of)}
    return {name: value for name, value in vars(typed).items() if name in paths}


def _metavar(leaf: Leaf) -> str:
    if leaf.choices:
        return "WORD"
    return {bool: "true|false", int: "N", float: "X", str: "TEXT"}[leaf.type]


def _help(leaf: Leaf) -> str:
    unit = f" [{leaf.option.unit}]" if leaf.option.unit else ""
    default = "" if leaf.default is None or leaf.default in ("", ()) else f" (default: {_word(leaf.default)})"
    choices = f" One of: {', '.join(leaf.choices)}." if leaf.choices else ""
    when = _when(leaf)
    return f"{leaf.option.help}{choices}{when}{unit}{default}"


def _when(leaf: Leaf) -> str:
    """With what it counts, after a space; empty where it always does."""
    here = [task for task in (TEXT, IMAGES) if applies(leaf, task)] if leaf.section else []  # of a run, that is
    alone = {TEXT: "Language models only.", IMAGES: "Image models only."}[here[0]] if len(here) == 1 else ""
    return "".join(f" {sentence}" for sentence in (told(leaf), alone) if sentence)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def json_schema(of: type = RunConfig) -> dict[str, Any]:
    """JSON Schema (2020-12) of a nested configuration; every default, bound and sentence is in it."""
    root = _object()
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    root["properties"]["version"] = {"type": "integer", "const": VERSION}
    for leaf in leaves(of):
        node = root
        if leaf.section:
            node = root["properties"].setdefault(leaf.section, _object())
        node["properties"][leaf.path.rpartition(".")[2]] = _entry(leaf)
    return root


def _object() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _entry(leaf: Leaf) -> dict[str, Any]:
    names = {int: "integer", float: "number", bool: "boolean", str: "string"}
    rules: dict[str, Any] = {"type": names[leaf.type]}
    if leaf.many:
        rules = {"type": "array", "items": rules}
    if leaf.optional:
        rules["type"] = [rules["type"], "null"]
    if leaf.choices:
        rules["enum"] = [*leaf.choices, None] if leaf.optional else list(leaf.choices)
    limits: Mapping[str, Any] = {"minimum": leaf.option.low, "maximum": leaf.option.high}
    rules |= {name: limit for name, limit in limits.items() if limit is not None}
    default = list(leaf.default) if leaf.many else leaf.default
    return rules | {"default": default, "description": f"{leaf.option.help}{_when(leaf)}"}


def options_table() -> str:
    """Markdown: a table a section, a row a setting."""
    parts: list[str] = []
    for section, title in TITLES.items():
        rows = [_row(leaf) for leaf in leaves() if leaf.section == section]
        heading = f"## {title.capitalize()}" + (f" (`{section}`)" if section else "")
        head = ["| setting | also | values | default | what it does |", "|---|---|---|---|---|"]
        parts += [heading, "", *head, *rows, ""]
    return "\n".join(parts)


def captions_table(of: type = CaptionConfig) -> str:
    """Markdown: the table in docs/captions.md, a row a setting of captioning, or of another command."""
    head = ["| flag | values | default | what it does |", "|---|---|---|---|"]
    return "\n".join([*head, *(_line([f"`--{leaf.path}`", *_cells(leaf)]) for leaf in leaves(of))])


def _row(leaf: Leaf) -> str:
    also = f"`{leaf.option.alias}`" if leaf.option.alias else ""
    return _line([f"`{leaf.path}`", also, *_cells(leaf)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(leaf: Leaf) -> list[str]:
    """What values it takes, its default, what it does."""
    kinds = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    values = ", ".join(f"`{choice}`" for choice in leaf.choices) or kinds[leaf.type]
    if leaf.many:
        values = f"list of {values}"
    span = bounds(leaf)
    default = "" if leaf.default is None or leaf.default in ("", ()) else f"`{_word(leaf.default)}`"
    mark = " *(advanced)*" if leaf.option.advanced else ""
    when = _when(leaf)
    return [f"{values}, {span}" if span else values, default, leaf.option.help + when + mark]


def options_page() -> str:
    """The whole of docs/options.md."""
    return f"""# Every setting

Generated from `lora_trainer/config/options.py` by `python -m lora_trainer.config.surfaces`.

A setting can be written in the YAML file under its section (`network:` and below it `rank: 8`), dotted
(`network.rank: 8`) or by the flat name in the second column (`lora_rank: 8`); on the command line as
`--network.rank 8` or `--lora_rank 8`, which wins over the file. Where no default stands, an empty value is allowed
or the setting is chosen from the base model and the images; `train --dry-run` shows what was chosen and why.

A setting that *counts only where* something is so is not offered by the page elsewhere, and a file, a flag or a request
that changes it is refused with a sentence that says what to do.

{options_table()}"""


if __name__ == "__main__":
    page = Path(__file__).resolve().parents[2] / "docs" / "options.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(options_page(), encoding="utf-8", newline="\n")
