"""What is sent to a data set, sorted out: which pictures belong with which captions, and what is no part of any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lora_trainer.contracts import PlainError
from lora_trainer.data.caption_sources import SIDECARS
from lora_trainer.data.captions import read_csv, read_jsonl
from lora_trainer.data.images import ENDINGS, image_size
from lora_trainer.data.mask_files import FOLDER, MASK
from lora_trainer.data.scan import Item, scan

TABLES = (".csv", ".jsonl")
KINDS = (*ENDINGS, *SIDECARS, *TABLES)  # endings of what a data set is made of


class Left(NamedTuple):
    """A file that was not taken."""

    name: str
    reason: str  # a sentence


class Group(NamedTuple):
    """Pictures of one name but for the ending, with their masks and caption files."""

    place: str  # folder, relative, ending in "/" unless empty
    stem: str
    pictures: list[str]  # names of files, masks among them; those of a folder of masks begin with its name
    captions: list[str]

    def renamed(self, name: str, stem: str) -> str:
        """What one of its files is called where the pictures are called `stem`."""
        folder, slash, own = name.rpartition("/")
        return folder + slash + stem + own[len(self.stem) :]


class Table(NamedTuple):
    """A table of captions, which may name what came with it and what is there already."""

    name: str
    said: dict[str, str]  # of pictures that came with it, by their names as sent


class Arriving(NamedTuple):
    groups: list[Group]
    tables: list[Table]
    left: list[Left]  # damaged pictures and tables, and files of other kinds


def arriving(staged: Path) -> Arriving:
    """What lies in a folder, sorted out."""
    left = list[Left]()
    groups: dict[tuple[str, str], Group] = {}
    tables = list[str]()
    for path in sorted(path for path in staged.rglob("*") if path.is_file()):
        name = path.relative_to(staged).as_posix()
        place, ending = name.removesuffix(path.name), path.suffix.lower()
        if ending in TABLES:
            tables.append(name)
            continue
        reason = _unfit(path, ending)
        if reason:
            left.append(Left(name, reason))
            continue
        if ending in ENDINGS:
            place = _outer(place)
        group = groups.setdefault((place, stem_of(path.name)), Group(place, stem_of(path.name), [], []))
        (group.pictures if ending in ENDINGS else group.captions).append(name.removeprefix(place))
    return Arriving(list(groups.values()), list(_tables(tables, staged, left)), left)


def _tables(names: list[str], staged: Path, left: list[Left]) -> Iterator[Table]:
    """Read while what they speak of still lies beside them; one that cannot be read is left."""
    for name in names:
        path = staged / name
        try:
            read_jsonl(path) if path.suffix.lower() == ".jsonl" else read_csv(path)
        except PlainError as error:
            left.append(Left(name, str(error)))
            continue
        place = name.removesuffix(path.name)
        yield Table(name, {place + item.name: item.caption for item in said_by(path, path.parent)})


def _outer(place: str) -> str:
    """Where the pictures lie whose masks might be in that folder."""
    outer, _, inner = place.removesuffix("/").rpartition("/")
    return place if inner != FOLDER else f"{outer}/" if outer else ""


def _unfit(path: Path, ending: str) -> str:
    if ending not in KINDS:
        return f"{path.name} is no picture, caption or table: a data set takes {', '.join(KINDS)}."
    if ending in ENDINGS:
        try:
            image_size(path)
        except PlainError as error:
            return str(error)
    return ""


def stem_of(name: str) -> str:
    """What a picture, its mask and its caption have in common."""
    return PurePosixPath(name).stem.removesuffix(MASK)


def may_be_mask(name: str) -> bool:
    """Whether a file of a group is a mask, if there is a picture that it could be of."""
    return MASK in name or name.startswith(f"{FOLDER}/")


def said_by(table: Path, folder: Path) -> list[Item]:
    """The pictures in a folder that have a caption in the table; none where no picture is there."""
    return [item for item in items_in(folder, table) if item.caption and item.caption_source == table.name]


def items_in(folder: Path, metadata: Path | None = None) -> tuple[Item, ...]:
    """A folder's pictures and captions; their sizes are not asked for."""
    if not any(path.suffix.lower() in ENDINGS for path in folder.rglob("*")):
        return ()
    return scan(folder, metadata, lambda path: (1, 1)).items
