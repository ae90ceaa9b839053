"""Dropped files become a folder of images that a configuration can name."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from lora_trainer.contracts import HostPaths, PlainError

_STANDS_IN = Path("output")  # where a stand-alone run writes that is given no folder


def uploads(paths: HostPaths) -> Path:
    """The folder that holds the folders of dropped files."""
    return (paths.runs or paths.loras or _STANDS_IN) / "data"


def keep(dropped: Iterable[str | Path], current: str, paths: HostPaths) -> Path:
    """Copy dropped files into a folder of their own, and return it.

    A second drop joins the first: where `current`, the folder of the form, is such a folder already, it is used
    again. No file is overwritten; a taken name gets a number. Raises PlainError.
    """
    root = uploads(paths).resolve()
    named = Path(current).expanduser().resolve() if current.strip() else None
    again = named is not None and named.is_relative_to(root) and named != root and named.is_dir()
    folder = named if again and named is not None else _free(root / time.strftime("dropped_%Y-%m-%d_%H%M%S"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in map(Path, dropped):
            shutil.copyfile(file, _free(folder / file.name))
    except OSError as error:
        raise PlainError(f"The dropped files cannot be kept in {folder} ({error.strerror}); name a folder.") from error
    return folder


def _free(path: Path) -> Path:
    """The path itself, or with the first number that no file has."""
    number = 2
    found = path
    while found.exists():
        found = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return found
