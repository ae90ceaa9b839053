"""Which files and folders a request may name: what a host allows, and no name that leads out of its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.load import ConfigError, Fault, load
from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import Host, HostPaths, PlainError

_PLACES = (
    "data.folder", "data.metadata", "data.regularization", "network.start_from", "validation.folder",
    "slider.opposite",
    "output.directory",
)  # fmt: skip
_NAME = "output.name"
_BASE = "model.base"
# Letters that a file system refuses or that end a prompt's <lora:name:weight>; and names that Windows keeps to itself.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_NOT_FETCHED = (
    "asks for a model of the Hugging Face hub, which this server fetches for nobody from outside; have it fetched at "
    "the machine itself, by its own page or command line, and leave this out"
)
_LONGEST_NAME = 120  # characters: with "-000000.safetensors" it stays below what the common file systems take


def load_allowed(raw: Mapping[str, Any], host: Host, *, by_page: bool = False) -> RunConfig:
    """`config.load.load` for a request from outside. Raises ConfigError with its faults and those of its paths.

    `by_page`: asked through the page, whose users may be the machine's own.
    """
    faults: list[Fault] = []
    config: RunConfig | None = None
    try:
        config = load(raw)
    except ConfigError as error:
        faults += error.faults
    told = " ".join(fault.path for fault in faults)
    paths = paths_for(host, by_page=by_page)
    of_paths = [*_faults_of_paths(raw, host, paths), *_faults_of_fetching(config, paths)]
    faults += [fault for fault in of_paths if fault.path not in told]  # one sentence a setting
    if faults or config is None:
        raise ConfigError(faults)
    return config


def paths_for(host: Host, *, by_page: bool) -> HostPaths:
    """The host's folders, with no limits for its own user at the page: who is at the machine may read it anyway."""
    paths = host.paths()
    return replace(paths, allowed=None) if by_page and paths.at_the_machine else paths


def check_allowed(path: str, paths: HostPaths, what: str) -> None:
    """Raise PlainError where a request may not name `path`; `what` is the setting's name."""
    fault = _outside(path, paths)
    if fault:
        raise PlainError(f"{what} {fault}.")


def check_base(base: str, host: Host, paths: HostPaths) -> None:
    """Raise PlainError where a request may not name that base model."""
    fault = _foreign_base(base, host, paths) if base and base != "demo" else ""
    if fault:
        raise PlainError(f"base {fault}.")


def check_fetching(paths: HostPaths, what: str) -> None:
    """Raise PlainError where a request may not have a model fetched: who may name some folders only may not fill the
    machine's disk either. `what` is the setting's name."""
    if paths.allowed is not None:
        raise PlainError(f"{what} {_NOT_FETCHED}.")


def _faults_of_fetching(config: RunConfig | None, paths: HostPaths) -> Iterator[Fault]:
    if config and config.model.download and paths.allowed is not None:
        yield Fault("model.download", _NOT_FETCHED)


def _faults_of_paths(raw: Mapping[str, Any], host: Host, paths: HostPaths) -> Iterator[Fault]:
    for leaf in leaves():
        given = _given(raw, leaf)
        if not given:
            continue
        fault = ""
        if leaf.path == _NAME:
            fault = bad_name(given)
        elif leaf.path in _PLACES:
            fault = _outside(given, paths)
        elif leaf.path == _BASE and given != "demo":
            fault = _foreign_base(given, host, paths)
        if fault:
            yield Fault(leaf.path, fault)


def _given(raw: Mapping[str, Any], leaf: Leaf) -> str:
    """The text that a setting has, however it is spelled; empty if it is left out or no text."""
    section, _, name = leaf.path.rpartition(".")
    inner = raw.get(section)
    nested = cast("Mapping[str, Any]", inner).get(name) if isinstance(inner, Mapping) else None
    found = next((value for value in (raw.get(leaf.path), raw.get(leaf.option.alias), nested) if value), "")
    return found if isinstance(found, str) else ""


def bad_name(name: str) -> str:
    """Why `name` cannot be the name of a file on every system, after the words for what it names; empty if it can."""
    if _FORBIDDEN.search(name) or name in (".", ".."):
        return (
            f"is {name!r}, but it becomes the name of a file, without a folder and without any of "
            '<>:"/\\|?*; give letters, digits, spaces, - and _'
        )
    if name.startswith(".") or name != name.strip() or name.endswith("."):
        return f"is {name!r}, but a name may not begin or end with a dot or a space; leave these away"
    if _DEVICES.fullmatch(name):
        return f"is {name!r}, which Windows keeps for a device; choose another name"
    if len(name) > _LONGEST_NAME:
        return f"has {len(name)} characters, but file systems take {_LONGEST_NAME} of them; shorten it"
    return ""


def _foreign_base(base: str, host: Host, paths: HostPaths) -> str:
    try:
        path = host.base_file(base)
    except PlainError:  # the host has no such image model, which the plan says better than we could here
        path = Path(base).expanduser()  # but it may be the folder of a language model
        if "\x00" in base or not path.exists():
            return ""
    if path is None or paths.allowed is None:
        return ""
    return _outside(str(path), replace(paths, allowed=(*paths.allowed, *paths.checkpoints)))


def _outside(given: str, paths: HostPaths) -> str:
    """Why a path may not be named, after the setting's name; empty if it may. Links are followed first."""
    if "\x00" in given:
        return "holds a zero byte, which no path has"
    allowed = paths.allowed
    if allowed is None:
        return ""
    try:
        wanted = Path(given).expanduser().resolve()
        if any(wanted.is_relative_to(folder.expanduser().resolve()) for folder in allowed):
            return ""
    except (OSError, RuntimeError) as error:  # a loop of links; a user without a home
        return f"is {given!r}, which leads nowhere ({error}); give a whole path"
    meaning = "" if Path(given).is_absolute() else f", which is {wanted} here"
    folders = ", ".join(map(str, allowed)) or "none"
    way = f", or {paths.widened_by}" if paths.widened_by else ""
    told = f"is {given!r}{meaning}, outside of the folders that this server allows ({folders})"
    return f"{told}; choose one below these{way}"
