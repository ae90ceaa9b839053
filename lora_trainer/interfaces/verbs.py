"""What the commands have in common whose flags are read off options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from lora_trainer.config.load import load_as, load_yaml
from lora_trainer.config.surfaces import add_flags, flags_of

Stoppable = Callable[[Any], AbstractContextManager[None]]  # within it Ctrl-C stops what is controlled
Options = TypeVar("Options")


def describe(
    verb: argparse.ArgumentParser, of: type[Any], titles: Mapping[str, str], *, usage: str, example: str,
    dry_run: str = "",
) -> None:  # fmt: skip
    """Give the verb a flag for each of the options `of`, a file to read them from and, with `dry_run`, that switch."""
    verb.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings; flags win over it")
    if dry_run:
        verb.add_argument("--dry-run", action="store_true", help=dry_run)
    verb.usage = f"%(prog)s {usage} [--SETTING VALUE ...]"
    verb.epilog = example
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    add_flags(verb, of, titles)


def options_of(given: argparse.Namespace, of: type[Options]) -> Options:
    """The options from file and flags. Raises ConfigError and PlainError."""
    raw = load_yaml(given.config) if given.config else {}
    return load_as(of, raw, flags_of(given, of))
