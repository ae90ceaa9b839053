"""Captions written to the places where they stand, all of an image's in step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lora_trainer.contracts import PlainError
from lora_trainer.data.caption_files import JsonLines, Table, replace_text
from lora_trainer.data.caption_sources import SIDECARS, TABLES, Place
from lora_trainer.data.captions import one_line
from lora_trainer.data.listing import Stamp, stamp_of
from lora_trainer.data.workshop.history import Change

FORMATS = (TABLES[0], *SIDECARS)


class Store:
    """Writes captions of one data set, each file whole; what others wrote is kept as .bak before it is replaced."""

    def __init__(self, folder: Path, metadata: Path | None) -> None:
        self._folder = folder
        self._metadata = metadata
        self._ours: dict[Path, Stamp | None] = {}  # how we left files: our own versions need no .bak

    def candidates(self, name: str, places: Iterable[Place]) -> list[Path]:
        """Every file in which a caption of the image may stand, those that are not there included."""
        tables = [self._metadata] if self._metadata else [self._folder / table for table in TABLES]
        beside = [self._beside(name, ending) for ending in SIDECARS]
        return list(dict.fromkeys([*tables, *beside, *(place.path for place in places)]))

    def changes(self, name: str, places: Sequence[Place], caption: str, new_in: str) -> Iterator[Change]:
        """What must be written so that every reader sees this caption; `new_in` is the format of an image that has
        none yet."""
        for place in places:
            if place.text != caption:
                yield Change(name, self._short(place.path), place.source, place.text, caption)
        if not places and caption:
            path = (self._metadata or self._folder / TABLES[0]) if new_in == TABLES[0] else self._beside(name, new_in)
            yield Change(name, self._short(path), path.name if new_in == TABLES[0] else new_in, None, caption)

    def path_of(self, change: Change) -> Path:
        """The file that a change is made in."""
        return self._folder / change.path

    def write(self, changes: Iterable[Change], images: Iterable[str]) -> Iterator[tuple[Path, Stamp | None]]:
        """Make each change, and tell of each file that is written its stamp: None where it was taken away.

        `images` are the names of all images. Raises PlainError where a file cannot be written; those before it are.
        """
        by_file: dict[Path, list[Change]] = defaultdict(list)
        for change in changes:
            by_file[self.path_of(change)].append(change)
        for path, group in by_file.items():
            keep = path not in self._ours or self._ours[path] != stamp_of(path)
            if group[0].source in SIDECARS:
                stamp = _write_text(path, group[-1].after, keep)
            else:
                stamp = self._write_table(path, group, images, keep)
            self._ours[path] = stamp
            yield path, stamp

    def _write_table(self, path: Path, group: Iterable[Change], images: Iterable[str], keep: bool) -> Stamp | None:
        kind = JsonLines if path.suffix.lower() == ".jsonl" else Table
        table = kind(path, self._folder, images, keep=keep)
        for change in group:
            if change.after is None:
                table.drop(change.name)
            else:
                table.put(change.name, change.after)
        return table.save() or stamp_of(path)

    def _beside(self, name: str, ending: str) -> Path:
        return self._folder / f"{name.rpartition('.')[0]}{ending}"

    def _short(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix() if path.is_relative_to(self._folder) else str(path)


def _write_text(path: Path, text: str | None, keep: bool) -> Stamp | None:
    if text is not None:
        return replace_text(path, one_line(text) + "\n", keep=keep)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise PlainError(f"{path} cannot be taken away ({error.strerror}); change the folder's permissions.") from error
    return None


def reversed_changes(changes: Iterable[Change]) -> list[Change]:
    """What takes these changes back."""
    return [change._replace(before=change.after, after=change.before) for change in changes]


def text_at(places: Mapping[str, Sequence[Place]], change: Change, path: Path) -> str | None:
    """What stands now where the change is made; None where nothing does."""
    return next((place.text for place in places.get(change.name, ()) if place.path == path), None)
