"""What is in a folder of images: the images, their sizes and captions, and everything worth telling about them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lora_trainer.contracts import PlainError
from lora_trainer.data.caption_sources import CaptionSources, Place, counting, read_tables
from lora_trainer.data.captions import Text, read_text
from lora_trainer.data.excluded import EXCLUDED, without_excluded
from lora_trainer.data.images import ENDINGS, OTHER_ENDINGS, image_size
from lora_trainer.data.listing import listing
from lora_trainer.data.mask_files import MaskFiles

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
    read_with: tuple[str, ...] = ()  # of the warnings those about reading caption files
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)  # by image: where captions of it stand


def scan(
    folder: Path,
    metadata: Path | None = None,
    size_of: Callable[[Path], tuple[int, int]] = image_size,
    text_of: Callable[[Path], Text] = read_text,
    files: Iterable[str] | None = None,
) -> Scan:
    """Find the images of a folder and its sub-folders, with their captions.

    Masks (see `MaskFiles`) and images that lora_trainer_excluded.txt names are passed by. Captions come from
    `metadata` (or metadata.csv, then metadata.jsonl in the folder), then from .txt, then from .caption files beside the
    images. `size_of` gives an image's width and height, upright, or raises PlainError; `text_of` reads a text file;
    `files` are the names of all files, where the caller has listed them. Raises PlainError for a folder without a
    readable image and for metadata that cannot be read.
    """
    check_folder(folder, metadata)
    files = list(listing(folder) if files is None else files)
    pictures = [file for file in files if file.lower().endswith(ENDINGS)]
    masks = MaskFiles(pictures)
    there = [file for file in pictures if file not in masks.names]
    others = _of_other_kinds(files)
    if not there:
        raise PlainError(
            f"{folder} has no images in it or its sub-folders: put some there with one of the endings "
            f"{', '.join(ENDINGS)}.{''.join(f' {told}' for told in others)}"
        )
    images, excluded = without_excluded(folder, there)
    sizes, unreadable = _sizes(folder, images, size_of)
    if not sizes:
        raise PlainError(f"None of the {len(images)} images in {folder} can be read; the first: {unreadable[0].reason}")
    tables = read_tables(folder, metadata)
    captions = CaptionSources(folder, files, there, tables, text_of)
    places = {name: captions.of(name) for name in sizes}
    bare = [
        Item(folder / name, name, *size, "", "", _repeats(name), folder / mask if (mask := masks.of(name)) else None)
        for name, size in sizes.items()
    ]
    blank = Scan(
        folder, tuple(bare), unreadable, (), captions.rows_without_image(), {}, (), excluded,
        doubled_rows=tuple(name for table in tables for name in table.doubles),
        not_unicode=tuple(captions.not_unicode),
        read_with=(*others, *captions.warnings),
    )  # fmt: skip
    return recaptioned(blank, places)


def recaptioned(scan: Scan, places: Mapping[str, tuple[Place, ...]]) -> Scan:
    """The same folder with these captions, by name of their images; the others' stay as they are."""
    items = tuple(_captioned(item, places[item.name]) if item.name in places else item for item in scan.items)
    missing = tuple(item.name for item in items if not item.caption)
    warnings = _warnings(items, scan.unreadable, missing, scan.rows_without_image, scan.read_with, scan.excluded)
    return replace(
        scan, items=items, missing_captions=missing, warnings=tuple(warnings), places={**scan.places, **places},
        sources=Counter(item.caption_source for item in items if item.caption),
    )  # fmt: skip


def _captioned(item: Item, places: tuple[Place, ...]) -> Item:
    caption, source = counting(places)
    if (caption, source) == (item.caption, item.caption_source):
        return item
    return replace(item, caption=caption, caption_source=source)


def check_folder(folder: Path, metadata: Path | None) -> None:
    """Raise PlainError where there is no such folder or no such table."""
    if not folder.exists():
        raise PlainError(f"The image folder {folder} does not exist: check its spelling.")
    if not folder.is_dir():
        raise PlainError(f"The image folder {folder} is a file: name the folder that it is in.")
    if metadata is not None and not metadata.is_file():
        raise PlainError(
            f"The metadata file {metadata} does not exist: check its spelling, or leave metadata_path out to take "
            "captions from the folder."
        )


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


def _repeats(name: str) -> int:
    for part in reversed(PurePosixPath(name).parent.parts):
        found = _REPEATS.match(part)
        if found and int(found[1]) <= _MOST_REPEATS:
            return int(found[1])
    return 1


def _of_other_kinds(files: Iterable[str]) -> list[str]:
    """A word on pictures that would be passed by without one, as a phone's are."""
    found = [file for file in files if file.lower().endswith(OTHER_ENDINGS)]
    told = "1 picture is of a kind" if len(found) == 1 else f"{len(found)} pictures are of kinds"
    return [f"{told} that cannot be read: {_some(found)}. Save such as PNG or JPEG."] if found else []


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
