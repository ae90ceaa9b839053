"""What is in a folder of images: the images, their sizes and captions, and everything worth telling about them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lora_trainer.contracts import PlainError
from lora_trainer.data.captions import Table, one_line, read_csv, read_jsonl, read_text, spelled
from lora_trainer.data.excluded import EXCLUDED, without_excluded
from lora_trainer.data.images import ENDINGS, image_size
from lora_trainer.data.mask_files import MaskFiles

SIDECARS = (".txt", ".caption")  # in the order they are asked

_TABLES = ("metadata.csv", "metadata.jsonl")  # likewise
_REPEATS = re.compile(r"([1-9][0-9]*)_")  # sd-scripts' folder names: "10_name" is shown ten times
_MOST_REPEATS = 1000  # the bound of data.repeats; "2023_summer" is a year, not a number of repeats
_NAMED = 3  # files named in a warning


@dataclass(frozen=True)
class Item:
    """One image that can be trained on."""

    path: Path
    name: str  # relative to the data set's folder, with "/"
    width: int  # pixels, upright
    height: int
    caption: str  # "" where none was found
    caption_source: str  # name of the metadata file, ".txt", ".caption", or "" where none was found
    repeats: int  # times an epoch shows it, from the folder's name
    mask: Path | None = None  # the file beside it that says which parts of it are learned

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        return self.width, self.height


class Unreadable(NamedTuple):
    """A file that looks like an image and is none."""

    path: Path
    reason: str  # a sentence


@dataclass(frozen=True)
class Scan:
    """A data set as it was found; nothing in it was changed."""

    folder: Path
    items: tuple[Item, ...]  # in the natural order of their names
    unreadable: tuple[Unreadable, ...]
    missing_captions: tuple[str, ...]  # names of images without a caption
    rows_without_image: tuple[str, ...]  # file names in metadata files that match no image
    sources: Mapping[str, int]  # images with a caption by where it came from
    warnings: tuple[str, ...]  # sentences for the user
    excluded: tuple[str, ...] = ()  # names of images that the list of excluded ones leaves out
    doubled_rows: tuple[str, ...] = ()  # file names with more than one row in a metadata file
    not_unicode: tuple[Path, ...] = ()  # caption files whose encoding had to be guessed


def scan(folder: Path, metadata: Path | None = None, size_of: Callable[[Path], tuple[int, int]] = image_size) -> Scan:
    """Find the images of a folder and its sub-folders, with their captions.

    Masks (see `MaskFiles`) and images that lora_trainer_excluded.txt names are passed by. Captions come from
    `metadata` (or metadata.csv, then metadata.jsonl in the folder), then from .txt, then from .caption files beside the
    images. `size_of` gives an image's width and height, upright, or raises PlainError. Raises PlainError for a folder
    without a readable image and for metadata that cannot be read.
    """
    _check(folder, metadata)
    files = list(_files(folder))
    pictures = [file for file in files if PurePosixPath(file).suffix.lower() in ENDINGS]
    masks = MaskFiles(pictures)
    there = [file for file in pictures if file not in masks.names]
    if not there:
        raise PlainError(
            f"{folder} has no images in it or its sub-folders: put some there with one of the endings "
            f"{', '.join(ENDINGS)}."
        )
    images, excluded = without_excluded(folder, there)
    sizes, unreadable = _sizes(folder, images, size_of)
    if not sizes:
        raise PlainError(f"None of the {len(images)} images in {folder} can be read; the first: {unreadable[0].reason}")
    tables = list(_tables(folder, metadata))
    captions = _Captions(folder, files, there, tables)
    items = tuple(_item(folder, name, size, captions, masks.of(name)) for name, size in sizes.items())
    missing = tuple(item.name for item in items if not item.caption)
    orphans = captions.rows_without_image()
    return Scan(
        folder, items, unreadable, missing, orphans,
        sources=Counter(item.caption_source for item in items if item.caption),
        warnings=tuple(_warnings(items, unreadable, missing, orphans, captions.warnings, excluded)),
        excluded=excluded,
        doubled_rows=tuple(name for table in tables for name in table.doubles),
        not_unicode=tuple(captions.not_unicode),
    )  # fmt: skip


def _check(folder: Path, metadata: Path | None) -> None:
    if not folder.exists():
        raise PlainError(f"The image folder {folder} does not exist: check its spelling.")
    if not folder.is_dir():
        raise PlainError(f"The image folder {folder} is a file: name the folder that it is in.")
    if metadata is not None and not metadata.is_file():
        raise PlainError(
            f"The metadata file {metadata} does not exist: check its spelling, or leave metadata_path out to take "
            "captions from the folder."
        )


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts "2.png" before "10.png", on every system alike."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name


def _files(folder: Path) -> Iterator[str]:
    """Names of all files below, relative, with "/"; hidden ones (and so our cache) are left out.

    Links to folders are followed; a folder reached a second time, through a link, is not entered again.
    """
    entered = set()
    waiting = [("", folder)]
    while waiting:
        prefix, here = waiting.pop()
        place = here.stat()
        if (place.st_dev, place.st_ino) in entered:
            continue
        entered.add((place.st_dev, place.st_ino))
        try:
            names = sorted((name for name in os.listdir(here) if _visible(name)), key=_natural)  # noqa: PTH208
        except OSError as error:
            raise PlainError(f"The folder {here} cannot be read ({error.strerror}): change its permissions.") from error
        inner = []
        for name in names:
            path = here / name
            if path.is_dir():
                inner.append((f"{prefix}{name}/", path))
            elif path.is_file():  # no link to nowhere, and no pipe, which would be waited for
                yield prefix + name
        waiting.extend(reversed(inner))


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _sizes(
    folder: Path, names: Iterable[str], size_of: Callable[[Path], tuple[int, int]]
) -> tuple[dict[str, tuple[int, int]], tuple[Unreadable, ...]]:
    sizes, unreadable = {}, []
    for name in names:
        try:
            sizes[name] = size_of(folder / name)
        except PlainError as error:
            unreadable.append(Unreadable(folder / name, str(error)))
    return sizes, tuple(unreadable)


def _tables(folder: Path, metadata: Path | None) -> Iterator[Table]:
    paths = [metadata] if metadata else [folder / name for name in _TABLES if (folder / name).is_file()]
    for path in paths:
        yield read_jsonl(path) if path.suffix.lower() == ".jsonl" else read_csv(path)


def _item(folder: Path, name: str, size: tuple[int, int], captions: _Captions, mask: str | None) -> Item:
    caption, source = captions.of(name)
    return Item(folder / name, name, *size, caption, source, _repeats(name), folder / mask if mask else None)


def _repeats(name: str) -> int:
    for part in reversed(PurePosixPath(name).parent.parts):
        found = _REPEATS.match(part)
        if found and int(found[1]) <= _MOST_REPEATS:
            return int(found[1])
    return 1


class _Captions:
    """Finds an image's caption in tables first, then in files beside it."""

    def __init__(self, folder: Path, files: Sequence[str], images: Sequence[str], tables: Sequence[Table]) -> None:
        self.warnings = [warning for table in tables for warning in table.warnings]
        self.not_unicode = [table.path for table in tables if not table.is_unicode]
        self._folder = absolute(folder)
        self._sidecars = {spelled(file): file for file in files if PurePosixPath(file).suffix.lower() in SIDECARS}
        self._images = {spelled(image) for image in images}
        self._tables = [(table, self._rows(table)) for table in tables]

    def of(self, name: str) -> tuple[str, str]:
        """(caption, source) of an image; both empty where there is none."""
        for table, rows in self._tables:
            row = rows.get(spelled(name))
            if row and table.captions[row]:
                return table.captions[row], table.path.name
        for ending in SIDECARS:
            sidecar = self._sidecars.get(spelled(str(PurePosixPath(name).with_suffix(ending))))
            if sidecar:
                text, warning = read_text(self._folder / sidecar)
                if warning:
                    self.warnings.append(warning)
                    self.not_unicode.append(self._folder / sidecar)
                if one_line(text):
                    return one_line(text), ending
        return "", ""

    def rows_without_image(self) -> tuple[str, ...]:
        """File names in tables that no image has; unreadable images count as being there."""
        return tuple(row for _, rows in self._tables for key, row in rows.items() if key not in self._images)

    def _rows(self, table: Table) -> dict[str, str]:
        return rows_by_image(table.captions, table.path.parent, self._folder, self._images)


def rows_by_image(names: Iterable[str], beside: Path, folder: Path, images: Collection[str]) -> dict[str, str]:
    """Comparable name of an image (`spelled`), relative to the data set's folder, to the name as a table spells it.

    Tables name files from the data set's folder, from their own (`beside`), in full, or by the bare name of a file in
    a sub-folder; the last only counts where a single image has that name. `images` are comparable names. Of two rows
    for one image the last counts.
    """
    folder = absolute(folder)
    namesakes = Counter(PurePosixPath(image).name for image in images)
    by_bare_name = {PurePosixPath(image).name: image for image in images}
    rows = {}
    for name in names:
        keys = [_relative(name, start, folder) for start in (folder, beside)]
        key = next((key for key in keys if key in images), keys[0])
        if key not in images and namesakes[spelled(name)] == 1:
            key = by_bare_name[spelled(name)]
        rows[key] = name
    return rows


def _relative(name: str, start: Path, folder: Path) -> str:
    full = absolute(start / name)
    return spelled(full.relative_to(folder).as_posix() if full.is_relative_to(folder) else name)


def absolute(path: Path) -> Path:
    """The path in full and without "..", links left as they are: resolve() would follow them out of the folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _warnings(
    items: Sequence[Item], unreadable: Sequence[Unreadable], missing: Sequence[str], orphans: Sequence[str],
    reading: Sequence[str], excluded: Sequence[str],
) -> Iterator[str]:  # fmt: skip
    if unreadable:
        names = _some([one.path.name for one in unreadable])
        yield f"{len(unreadable)} of {len(items) + len(unreadable)} images cannot be read and are left out: {names}."
    if excluded:
        yield f"{len(excluded)} images are left out as {EXCLUDED} says: {_some(excluded)}."
    if missing:
        yield f"{len(missing)} of {len(items)} images have no caption and are trained on without one: {_some(missing)}."
    if orphans:
        yield f"Metadata names files that are not there ({len(orphans)}): {_some(orphans)}."
    yield from reading[:_NAMED]
    if len(reading) > _NAMED:
        yield f"So it is with {len(reading) - _NAMED} more caption files."
    repeated = sorted({(item.repeats, str(PurePosixPath(item.name).parent)) for item in items if item.repeats > 1})
    for repeats, name in repeated[:_NAMED]:
        yield f"Images in the folder {name} are shown {repeats} times an epoch, as its name begins with {repeats}_."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
