"""The one way in: a mapping from a file, flags, a form, an HTTP body or an old LoRA's metadata becomes a RunConfig.

Keys may be nested (`network: {rank: 8}`), dotted (`network.rank: 8`) or the flat names of lora-scripts files
(`lora_rank: 8`), also mixed. Every fault is found before anything is said. What an empty value means, and which
spellings of a value are read, stands in `values.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, get_type_hints

import yaml

from lora_trainer.config.applies import refusals
from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.config.class_images import ClassImagesConfig
from lora_trainer.config.leaves import Leaf, leaves, sections
from lora_trainer.config.options import GIVEN, VERSION, RunConfig
from lora_trainer.config.ranks import NoRule, pattern_of, rule_of
from lora_trainer.config.values import Unfit, shown, value_of
from lora_trainer.contracts import PlainError

# MIGRATIONS[i] turns the raw mapping of version i + 1 into that of version i + 2.
MIGRATIONS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = ()

PAGES: dict[type, str] = {  # that list the settings
    RunConfig: "docs/options.md", CaptionConfig: "docs/captions.md", ClassImagesConfig: "docs/crops.md",
}  # fmt: skip
RIVALS = {"train.steps": "train.epochs", "train.epochs": "train.steps"}  # two measures of one thing
LARGEST_FILE = 1 << 20  # bytes; a configuration has some hundreds, so a larger file is something else

T = TypeVar("T")


class Fault(NamedTuple):
    """What is wrong with one setting."""

    path: str  # as it was given
    text: str  # what was found and what to do; follows the path in a sentence

    @property
    def sentence(self) -> str:
        """Path and text with their full stop."""
        told = f"{self.path} {self.text}"
        return told if told.endswith("?") else f"{told}."


class ConfigError(PlainError):
    """Every fault of a configuration at once."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = tuple(faults)
        head = "This setting cannot be used:" if len(faults) == 1 else f"{len(faults)} settings cannot be used:"
        super().__init__("\n".join([head, *(f"  {fault.path} {fault.text}" for fault in faults)]))


def load(raw: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> RunConfig:
    """The run that a mapping describes: `load_as` with all options of a run."""
    return load_as(RunConfig, raw, over)


def load_recipe(recipe: Mapping[str, Any]) -> tuple[RunConfig, tuple[str, ...]]:
    """The run that a LoRA's own record describes, and the paths of its settings that change nothing and are left out.

    A record may be of a release that let such settings stand; nobody can mend it, unlike a file that somebody wrote,
    where `load` refuses them. Raises ConfigError for its other faults.
    """
    by_name = _by_name(RunConfig)
    kept = flat_settings(recipe)
    left: list[str] = []
    while idle := {fault.path for fault in _idle(RunConfig, _readable(kept, by_name))}:
        left += sorted(idle)
        kept = {name: value for name, value in kept.items() if name not in by_name or by_name[name].path not in idle}
    return load(kept), tuple(left)


def _readable(settings: Mapping[str, Any], by_name: Mapping[str, Leaf]) -> dict[str, Any]:
    """Values by path, without those that `load` will refuse."""
    values: dict[str, Any] = {}
    for name, found in settings.items():
        with suppress(KeyError, Unfit):
            values[by_name[name].path] = value_of(by_name[name], found)
    return values


def load_as(cls: type[T], raw: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> T:
    """The configuration of this class that a mapping describes. Raises ConfigError with all its faults; changes no
    value.

    Settings in `over` (dotted paths, as flags give them) stand in the place of those in `raw`, however these are
    spelled there; a length in steps also replaces one in epochs, and the other way round.
    """
    by_name = _by_name(cls)
    entries = _entries(cls, raw, over or {})
    faults: list[Fault] = []
    given: dict[str, tuple[str, Any]] = {}  # path: (name it came under, value)
    for name, found in entries:
        leaf = by_name.get(name)
        if leaf is None:
            faults.append(Fault(name, _unknown(cls, name, found)))
            continue
        try:
            value = value_of(leaf, found)
        except Unfit as unfit:
            faults.append(Fault(_told_as(name, leaf), str(unfit)))
            continue
        first, earlier = given.setdefault(leaf.path, (name, value))
        if earlier != value:
            text = f"is {shown(value)}, but {first} is {shown(earlier)}, and both are the same setting; keep one"
            faults.append(Fault(name, text))
    values = {path: value for path, (_, value) in given.items()}
    faults += _idle(cls, values)
    faults += _contradictions(values)
    if faults:
        raise ConfigError(faults)
    return _built(cls, values)


def flat_settings(raw: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every setting of a mapping by the name it came under, as `load` would see it; `over` wins.

    Raises ConfigError where one name has two values.
    """
    found: dict[str, Any] = {}
    for name, value in _entries(RunConfig, raw, over or {}):
        if found.setdefault(name, value) != value:
            raise ConfigError([Fault(name, f"is {shown(found[name])} and {shown(value)}; keep one")])
    return found


def _by_name(cls: type) -> dict[str, Leaf]:
    return {name: leaf for leaf in leaves(cls) for name in (leaf.path, leaf.option.alias) if name}


def _entries(cls: type, raw: Mapping[str, Any], over: Mapping[str, Any]) -> list[tuple[str, Any]]:
    by_name = _by_name(cls)
    replaced = over.keys() | {RIVALS[path] for path in over.keys() & RIVALS.keys() if over[path] not in (None, "")}
    entries = [
        (name, found) for name, found in _flat(_migrated(dict(raw)), sections(cls))
        if name not in by_name or by_name[name].path not in replaced
    ]  # fmt: skip
    return entries + list(over.items())


def dump(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested plain values, with its version; `load` gives back an equal one."""
    return {"version": VERSION, **_plain(asdict(config))}


def load_yaml(path: Path) -> dict[str, Any]:
    """The raw mapping in a YAML file, for `load`; empty for an empty file. Raises PlainError, with the line."""
    return read_yaml(_text_of(path), str(path))


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """The raw mapping in YAML text that came from what is called `name`. Raises PlainError, with the line."""
    try:
        raw = yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        raise PlainError(f"{name}{_place(error)}: {_reason(error)}.") from error
    except RecursionError as error:
        raise PlainError(f"{name} is nested too deeply to be a configuration.") from error
    except ValueError as error:  # a number such as `0x_` or one of thousands of digits
        raise PlainError(f"{name} holds a number that cannot be read: {error}.") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise PlainError(f"{name} holds {type(raw).__name__} where settings are wanted, one 'name: value' a line.")
    return cast("dict[str, Any]", raw)


def dump_yaml(config: RunConfig, lists: Mapping[str, list[Any]] | None = None) -> str:
    """The configuration as YAML text; read again it gives an equal one.

    `lists` are those of a sweep, by path, which stand in the place of the configuration's values.
    """
    whole = dump(config)
    for path, values in (lists or {}).items():
        section, _, name = path.rpartition(".")
        (whole[section] if section else whole)[name] = values
    return yaml.dump(whole, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


# --- mappings --------------------------------------------------------------------------------------------------------


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(cast("dict[str, Any]", value)) if isinstance(value, dict)
        else list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple)
        else value
        for key, value in values.items()
    }  # fmt: skip


def _migrated(raw: dict[str, Any]) -> dict[str, Any]:
    version = raw.pop("version", VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError([Fault("version", f"is {version!r}, but a whole number from 1 to {VERSION} is wanted")])
    if version > VERSION:
        text = f"is {version}, newer than the {VERSION} that this LoRA Trainer knows; update it to use this file"
        raise ConfigError([Fault("version", text)])
    for migrate in MIGRATIONS[version - 1 :]:
        raw = migrate(raw)
    return raw


def _flat(raw: Mapping[Any, Any], known: Mapping[str, type]) -> Iterator[tuple[str, Any]]:
    """(name, value) of every setting; only sections are opened, so that a mapping given to a setting stays a fault."""
    for key, value in raw.items():
        name = str(key)
        if name not in known:
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", item) for inner, item in cast("Mapping[Any, Any]", value).items())
        elif value is not None:  # a heading with nothing below it
            yield name, value


def _unknown(cls: type, name: str, found: Any) -> str:
    if name in sections(cls):
        example = next(leaf for leaf in leaves(cls) if leaf.section == name)
        return f"is a group of settings and cannot be {shown(found)}; write for example {example.path}"
    near = _meant(cls, name)
    hint = f"did you mean {near}?" if near else f"{PAGES.get(cls, PAGES[RunConfig])} lists them all"
    return f"(given as {shown(found)}): there is no such setting; {hint}"


def _meant(cls: type, name: str) -> str:
    """The known name that an unknown one most likely means, or nothing."""
    paths = {leaf.path: leaf.path for leaf in leaves(cls)}
    aliases = {leaf.option.alias: leaf.option.alias for leaf in leaves(cls) if leaf.option.alias}
    elsewhere = {other: leaf.path for leaf in leaves(cls) for other in leaf.option.elsewhere}
    ends = {path.rpartition(".")[2]: path for path in paths}
    last = name.rpartition(".")[2]
    for names in (elsewhere, aliases, ends):
        if last in names:
            return names[last]
    spellings = ends | aliases | paths
    near = difflib.get_close_matches(name.lower(), spellings, n=1, cutoff=0.7)
    near = near or difflib.get_close_matches(last.lower(), spellings, n=1, cutoff=0.7)
    return spellings[near[0]] if near else ""


def _told_as(name: str, leaf: Leaf) -> str:
    return name if name == leaf.path else f"{name} ({leaf.path})"


def _idle(cls: type, values: Mapping[str, Any]) -> Iterator[Fault]:
    """Settings that would change nothing, because another one has a value that they do not go with."""
    known = {leaf.path: leaf for leaf in leaves(cls)}
    for path, other, need in refusals(values, known):
        found = "it is not" if need.values == GIVEN else f"that is {shown(values.get(other, known[other].default))}"
        text = f"is {shown(values[path])}, but counts only where {need.words}, and {found}"
        yield Fault(path, f"{text}; leave it out, or {need.remedy}")


def _contradictions(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Settings that are right one by one and not together."""
    for path, read in (("network.layers", pattern_of), ("network.ranks", rule_of)):
        for text in values.get(path, ()):
            try:
                read(text)
            except NoRule as fault:
                yield Fault(path, f"holds a line that cannot be read: {fault}")
    if values.get("network.start_from") and values.get("network.init", "default") != "default":
        text = (
            f"is {values['network.init']}, which takes the first weights from the base, and network.start_from from a "
            "file; leave one of them out"
        )
        yield Fault("network.init", text)
    epochs, steps = values.get("train.epochs"), values.get("train.steps")
    if epochs is not None and steps is not None:
        text = f"is {epochs} and train.steps is {steps}, but a run is measured by one of them; leave the other empty"
        yield Fault("train.epochs", text)


def _built(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    inner: dict[str, Any] = {name: _built(part, values, f"{prefix}{name}.") for name, part in sections(cls).items()}
    own = {name: values[prefix + name] for name in get_type_hints(cls) if prefix + name in values}
    return cls(**inner, **own)


# --- YAML text -------------------------------------------------------------------------------------------------------


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a configuration may not hold; `problem` is a sentence for the user."""


class _PlainLoader(yaml.SafeLoader):
    """Safe loading that also refuses tags, and a key given twice, of which YAML would silently take the last."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = cast(yaml.NodeEvent, self.peek_event())  # pyright: ignore[reportUnknownMemberType] - untyped there
        if getattr(event, "tag", None) is not None:
            problem = "a tag ('!...') asks for an object, but a configuration holds plain values only; remove the tag"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _Refused(problem=f"{key.value} is given twice; keep one", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


# Dates are text here: without this `output_name: 2024-13-45` would end in a ValueError from inside the parser.
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _PlainDumper(yaml.SafeDumper):
    """Safe writing that escapes what PyYAML would write bare and read as something else, such as U+0085."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None if data.isprintable() else '"'
        return yaml.ScalarNode("tag:yaml.org,2002:str", data, style=style)


_PlainDumper.add_representer(str, _PlainDumper.represent_str)


def _text_of(path: Path) -> str:
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise PlainError(f"No configuration could be read from {path}: {found}; name a YAML file.")
    if path.stat().st_size > LARGEST_FILE:
        raise PlainError(f"{path} has {path.stat().st_size:,} bytes, too many for a configuration; name a YAML file.")
    try:
        return path.read_bytes().decode("utf-8-sig")  # with or without the mark that Windows editors put in front
    except UnicodeDecodeError as error:
        raise PlainError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8 and try again.") from error
    except OSError as error:
        raise PlainError(f"{path} cannot be read: {error.strerror}.") from error


def _place(error: yaml.YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return f", line {mark.line + 1}" if mark else ""


def _reason(error: yaml.YAMLError) -> str:
    """The parser's complaint in the words of someone who wrote a settings file."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "it holds characters that no text file has; save it as plain UTF-8 text"
    problem = error.problem or "it is not YAML"
    if isinstance(error, _Refused):
        return problem
    if "'\\t'" in problem:
        return "a tab stands where spaces are wanted; indent with spaces"
    if "escape" in problem:
        return "in double quotes a backslash starts an escape; write Windows paths with / or in single quotes"
    return f"this is not valid YAML ({problem})"
