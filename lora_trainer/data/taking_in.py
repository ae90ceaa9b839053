"""Files that were sent join a data set: nothing there is overwritten, and captions stay with their pictures."""

from __future__ import annotations

import filecmp
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lora_trainer.contracts import PlainError
from lora_trainer.data import caption_files
from lora_trainer.data.arriving import (
    KINDS,
    Group,
    Left,
    Table,
    arriving,
    items_in,
    may_be_mask,
    said_by,
    stem_of,
)
from lora_trainer.data.caption_sources import SIDECARS
from lora_trainer.data.captions import one_line, spelled
from lora_trainer.data.images import ENDINGS
from lora_trainer.data.mask_files import FOLDER
from lora_trainer.data.scan import Item

_ITS_TABLES = ("metadata.csv", "metadata.jsonl")


@dataclass
class Taken:
    """What became of the files."""

    folder: Path
    pictures: list[str] = field(default_factory=list[str])  # names of those that are new in the data set
    captions: int = 0  # that are new there, in files and rows
    already: list[str] = field(default_factory=list[str])  # were there already, byte for byte
    renamed: dict[str, str] = field(default_factory=dict[str, str])  # name as sent to name in the data set
    left: list[Left] = field(default_factory=list[Left])
    places: dict[str, str] = field(default_factory=dict[str, str])  # pictures: name as sent to name in the data set


def take_in(staged: Path, folder: Path, prompts: Mapping[str, str] | None = None) -> Taken:
    """Move what lies in `staged` into the data set `folder`, which is made if need be.

    Pictures whose names are taken get a number, and their captions and masks with them; what is there already, byte
    for byte, is passed by. A picture that has a caption keeps it. `prompts` are captions of pictures in `staged` that
    bring none. What cannot be taken stays in `staged` and is named with the reason. Raises PlainError where the disk
    fails; what was taken before that is whole.
    """
    taken = Taken(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not any(folder.iterdir())
        found = arriving(staged)
        taken.left += found.left
        there = _There(folder)
        for group in found.groups:
            _settle(group, staged, there, taken)
    except OSError as error:
        raise PlainError(
            f"After {len(taken.pictures)} pictures nothing more could be written to {folder} "
            f"({error.strerror or error}): make room or change its permissions, and send the rest again."
        ) from error
    try:
        tables = found.tables
        if is_new and _is_one(tables) and not taken.renamed:
            _take_whole(tables.pop(), staged, taken)
        _caption(tables, staged, taken, prompts or {})
    except PlainError as error:  # the pictures are there, and must be told
        taken.left.append(Left("captions", str(error)))
    return taken


# --- where it goes ---------------------------------------------------------------------------------------------------


class _There:
    """The files of the data set's folders, by what their pictures are called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder.resolve()
        self._known: dict[str, defaultdict[str, list[str]]] = {}

    def at(self, place: str) -> Path:
        """A folder of the data set. Raises PlainError where a link leads out of it."""
        path = self._folder / place
        if not path.resolve().is_relative_to(self._root):
            raise PlainError(f"{place} is a link that leads out of the data set: send these files to where it leads.")
        return path

    def of(self, place: str, stem: str) -> list[str]:
        """Names of the files there that belong to a picture of that stem."""
        if place not in self._known:
            known: defaultdict[str, list[str]] = defaultdict(list)
            for below, endings in (("", KINDS), (f"{FOLDER}/", ENDINGS)):
                inside = self.at(place + below)
                for path in inside.iterdir() if inside.is_dir() else ():
                    if path.suffix.lower() in endings:
                        known[spelled(stem_of(path.name))].append(below + path.name)
            self._known[place] = known
        return self._known[place][spelled(stem)]


def _settle(group: Group, staged: Path, there: _There, taken: Taken) -> None:
    try:
        stem = _free(group, staged, there)
        target, known = there.at(group.place), there.of(group.place, stem)
    except PlainError as error:
        taken.left += [Left(group.place + name, str(error)) for name in _files_of(group)]
        return
    has_picture = not all(map(may_be_mask, group.pictures)) or any(map(_is_picture, known))
    for name in _files_of(group):
        sent, final = group.place + name, group.renamed(name, stem)
        own = next((one for one in known if spelled(one) == spelled(final)), None)
        if name in group.pictures:
            taken.places[sent] = group.place + (own or final)
        if own is None:
            (target / final).parent.mkdir(parents=True, exist_ok=True)
            _place(staged / sent, target / final)
            known.append(final)
            if name in group.captions:
                taken.captions += 1
            elif not (has_picture and may_be_mask(name)):
                taken.pictures.append(group.place + final)
            if final != name:
                taken.renamed[sent] = group.place + final
        elif filecmp.cmp(staged / sent, target / own, shallow=False):
            taken.already.append(sent)
        else:
            taken.left.append(Left(sent, f"There is another {group.place}{own} already, which stays as it is."))


def _free(group: Group, staged: Path, there: _There) -> str:
    """The first stem under which a group mixes up nothing there, or lies there already."""
    if all(map(may_be_mask, group.pictures)):  # what belongs to pictures that are there, or come later
        return group.stem
    number = 1
    while True:
        stem = group.stem if number == 1 else f"{group.stem}_{number}"
        known = {spelled(name): there.at(group.place) / name for name in there.of(group.place, stem)}
        wanted = {spelled(group.renamed(name, stem)): staged / group.place / name for name in _files_of(group)}
        same = {key for key in wanted.keys() & known.keys() if filecmp.cmp(wanted[key], known[key], shallow=False)}
        pictures = {key for key in wanted if _is_picture(key)}
        if pictures <= same or (not any(map(_is_picture, known)) and wanted.keys() & known.keys() <= same):
            return stem
        number += 1


def _files_of(group: Group) -> list[str]:
    return [*group.pictures, *group.captions]


def _is_picture(name: str) -> bool:
    """And no mask."""
    return PurePosixPath(name).suffix.lower() in ENDINGS and not may_be_mask(name)


def _place(source: Path, target: Path) -> None:
    """Move a file, over file systems if need be, so that it is whole wherever it is seen."""
    unfinished = target.with_name(f".{secrets.token_hex(8)}")
    try:
        shutil.move(source, unfinished)
        if target.exists():  # another program wrote it meanwhile
            raise FileExistsError(17, "File exists", str(target))
        unfinished.rename(target)
    except OSError:
        if unfinished.exists() and not source.exists():
            shutil.move(unfinished, source)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


# --- captions of tables, and prompts ---------------------------------------------------------------------------------


def _caption(tables: list[Table], staged: Path, taken: Taken, prompts: Mapping[str, str]) -> None:
    """Give captions to the pictures that have none; the prompts are asked last."""
    tabled: dict[str, str] = {}
    for table in tables:
        tabled |= {item.name: item.caption for item in said_by(staged / table.name, taken.folder)}
        tabled |= {taken.places[sent]: caption for sent, caption in table.said.items() if sent in taken.places}
    asked = {taken.places[sent]: text for sent, text in prompts.items() if sent in taken.places and text}
    if not tabled and not asked:
        return
    items = {item.name: item for item in items_in(taken.folder)}
    bare = {name for name, item in items.items() if not item.caption}
    new = {name: one_line(text) for name, text in (asked | tabled).items() if name in bare}
    taken.left += [
        Left(name, f"The caption that came in a table for {name} is another than it has, which stays.")
        for name, text in tabled.items() if name in items and name not in bare and one_line(text) != items[name].caption
    ]  # fmt: skip
    files = _files(taken.folder, items, bool(tables))
    for name, caption in new.items():
        try:
            files.put(name, caption)
        except PlainError as error:  # a name that cannot stand there, which must not cost the others
            taken.left.append(Left(name, str(error)))
        else:
            taken.captions += 1
    files.save()


def _is_one(tables: list[Table]) -> bool:
    return len(tables) == 1 and tables[0].name in _ITS_TABLES


def _take_whole(table: Table, staged: Path, taken: Taken) -> None:
    """With its further columns, and its rows of files that may come later."""
    _place(staged / table.name, taken.folder / table.name)
    taken.captions += len(table.said)


def _files(folder: Path, items: Mapping[str, Item], by_table: bool) -> caption_files.CaptionFiles:
    """Where new captions go: to where the data set's others stand, else to a table if they came in one."""
    path = folder / _ITS_TABLES[0]
    endings = Counter(item.caption_source for item in items.values() if item.caption_source in SIDECARS)
    if path.exists() or (by_table and not endings):
        return caption_files.Table(path, folder, items)
    return caption_files.Sidecars(folder, endings.most_common(1)[0][0] if endings else SIDECARS[0])
