"""The files below a folder, with what tells that one of them was changed."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from lora_trainer.contracts import PlainError

Stamp = tuple[int, int]  # bytes, and nanoseconds of the last change: another one means another content


def listing(folder: Path) -> dict[str, Stamp]:
    """Stamps of all files below, by name relative to the folder, with "/", in natural order; hidden ones (and so our
    cache) are left out.

    Links to folders are followed; a folder reached a second time, through a link, is not entered again. Raises
    PlainError where one cannot be read.
    """
    files: dict[str, Stamp] = {}
    entered = set()
    waiting = [("", str(folder))]
    while waiting:
        prefix, here = waiting.pop()
        try:
            place = os.stat(here)  # noqa: PTH116
            if (place.st_dev, place.st_ino) in entered:
                continue
            entered.add((place.st_dev, place.st_ino))
            with os.scandir(here) as found:
                entries = sorted((one for one in found if _visible(one.name)), key=lambda one: natural(one.name))
        except OSError as error:
            raise PlainError(f"The folder {here} cannot be read ({error.strerror}): change its permissions.") from error
        inner = []
        for entry in entries:
            try:
                if entry.is_dir():
                    inner.append((f"{prefix}{entry.name}/", entry.path))
                    continue
                about = entry.stat()
            except OSError:
                continue  # a link to nowhere
            if stat.S_ISREG(about.st_mode):  # no pipe, which would be waited for
                files[prefix + entry.name] = (about.st_size, about.st_mtime_ns)
        waiting.extend(reversed(inner))
    return files


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of one file; None where there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts "2.png" before "10.png", on every system alike."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
