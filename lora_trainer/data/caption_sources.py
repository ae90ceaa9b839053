"""Where the captions of a folder's images stand: rows of tables, and text files beside the images."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_trainer.data.captions import Table, Text, one_line, read_csv, read_jsonl, spelled

SIDECARS = (".txt", ".caption")  # in the order they are asked
TABLES = ("metadata.csv", "metadata.jsonl")  # likewise, before those


class Place(NamedTuple):
    """One place where a caption of an image stands."""

    path: Path  # the table, or the text file beside the image
    source: str  # name of the table, or the ending of the text file
    text: str  # in one line; "" for an empty row or file


class CaptionSources:
    """Finds an image's captions in tables first, then in files beside it."""

    def __init__(
        self, folder: Path, files: Iterable[str], images: Iterable[str], tables: Sequence[Table],
        text_of: Callable[[Path], Text],
    ) -> None:  # fmt: skip
        """`files` and `images` are names of the folder's; `text_of` reads a text file."""
        self.warnings = [warning for table in tables for warning in table.warnings]
        self.not_unicode = [table.path for table in tables if not table.is_unicode]
        self._folder = absolute(folder)
        self._text_of = text_of
        self._sidecars = {spelled(file): file for file in files if file.lower().endswith(SIDECARS)}
        self._images = {spelled(image) for image in images}
        self._tables = [
            (table, rows_by_image(table.captions, table.path.parent, folder, self._images)) for table in tables
        ]

    def of(self, name: str) -> tuple[Place, ...]:
        """All places of an image's captions, in the order they are asked: the first with a text counts."""
        places = list[Place]()
        key = spelled(name)
        for table, rows in self._tables:
            row = rows.get(key)
            if row is not None:
                places.append(Place(table.path, table.path.name, table.captions[row]))
        for ending in SIDECARS:
            sidecar = self._sidecars.get(key.rpartition(".")[0] + ending)
            if sidecar:
                path = self._folder / sidecar
                text, warning = self._text_of(path)
                if warning:
                    self.warnings.append(warning)
                    self.not_unicode.append(path)
                places.append(Place(path, ending, one_line(text)))
        return tuple(places)

    def rows_without_image(self) -> tuple[str, ...]:
        """File names in tables that no image has; unreadable images count as being there."""
        return tuple(row for _, rows in self._tables for key, row in rows.items() if key not in self._images)


def counting(places: Iterable[Place]) -> tuple[str, str]:
    """(caption, source) of the place that counts; both empty where there is none."""
    return next(((place.text, place.source) for place in places if place.text), ("", ""))


def read_tables(folder: Path, metadata: Path | None) -> list[Table]:
    """The tables of a folder's captions, in the order they are asked: the one that is named, or those in the folder.

    Raises PlainError for one that cannot be read.
    """
    paths = [metadata] if metadata else [folder / name for name in TABLES if (folder / name).is_file()]
    return [read_jsonl(path) if path.suffix.lower() == ".jsonl" else read_csv(path) for path in paths]


def rows_by_image(names: Iterable[str], beside: Path, folder: Path, images: Collection[str]) -> dict[str, str]:
    """Comparable name of an image (`spelled`), relative to the data set's folder, to the name as a table spells it.

    Tables name files from the data set's folder, from their own (`beside`), in full, or by the bare name of a file in
    a sub-folder; the last only counts where a single image has that name. `images` are comparable names. Of two rows
    for one image the last counts.
    """
    folder = absolute(folder)
    by_bare_name: Mapping[str, list[str]] | None = None
    rows = {}
    for name in names:
        key = spelled(name)
        if key not in images:  # else it is named as we name it, which spares ten thousand paths
            keys = [_relative(name, start, folder) for start in (folder, beside)]
            key = next((key for key in keys if key in images), keys[0])
        if key not in images:
            if by_bare_name is None:
                by_bare_name = _by_bare_name(images)
            namesakes = by_bare_name.get(spelled(name), [])
            key = namesakes[0] if len(namesakes) == 1 else key
        rows[key] = name
    return rows


def _by_bare_name(images: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for image in images:
        found.setdefault(image.rpartition("/")[2], []).append(image)
    return found


def _relative(name: str, start: Path, folder: Path) -> str:
    full = absolute(start / name)
    return spelled(full.relative_to(folder).as_posix() if full.is_relative_to(folder) else name)


def absolute(path: Path) -> Path:
    """The path in full and without "..", links left as they are: resolve() would follow them out of the folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100
