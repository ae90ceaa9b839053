"""A data set kept open to be edited, with nothing lost: one caption, many at once, and all of it back again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lora_trainer.contracts import PlainError
from lora_trainer.data.buckets import Point
from lora_trainer.data.caption_files import PREVIOUS
from lora_trainer.data.caption_sources import SIDECARS
from lora_trainer.data.captions import one_line, read_text
from lora_trainer.data.focus import FOCUS, FocusTable
from lora_trainer.data.listing import Stamp, stamp_of
from lora_trainer.data.scan import Item
from lora_trainer.data.workshop.edits import LONGEST, Edit, edited
from lora_trainer.data.workshop.history import Change, History
from lora_trainer.data.workshop.query import Filter
from lora_trainer.data.workshop.snapshot import Snapshot
from lora_trainer.data.workshop.store import Store, reversed_changes, text_at
from lora_trainer.data.workshop.watched import Watched


class Changed(PlainError):
    """The caption on the disk is another than the one that was to be changed."""

    def __init__(self, name: str, caption: str, version: str) -> None:
        super().__init__(
            f"The caption of {name} was changed by someone else meanwhile and was not replaced; look at it, and save "
            "yours again if it is to stand instead."
        )
        self.caption = caption
        self.version = version


class NoSuchImage(PlainError):
    """The data set has no image of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no image {name!r} in this data set, or not any more; look at its list again.")


class Done(NamedTuple):
    """What an edit, an undo or a redo did."""

    what: str  # a sentence
    count: int  # captions


class Example(NamedTuple):
    """What an edit makes of one caption."""

    name: str
    before: str
    after: str


class Workshop(Watched):
    """One folder of images and captions, open. Every method may be called from any thread."""

    def __init__(
        self, folder: Path, metadata: Path | None, *, cache: Path, tokens: Callable[[str], int], trigger: str = ""
    ) -> None:
        """`cache` is the folder that remembers what was read and done. Raises PlainError as `Watched` does."""
        super().__init__(folder, metadata, cache=cache, tokens=tokens, trigger=trigger)
        self._history = History(cache)
        self._store = Store(self.folder, self.metadata)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return self._history.last is not None

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to do again."""
        return self._history.next is not None

    def save(self, name: str, caption: str, version: str) -> Snapshot:
        """Write one caption to every place where the image has one.

        Raises Changed where the one on the disk is not of that version, NoSuchImage, and PlainError where a file cannot
        be written.
        """
        caption = one_line(caption)
        if len(caption) > LONGEST:
            raise PlainError(f"The caption has {len(caption):,} letters, and {LONGEST:,} are the most; shorten it.")
        with self._lock:
            if name not in self.snapshot.items or not self._is_current(name):
                self.refresh()
            snapshot = self.snapshot
            if name not in snapshot.items:
                raise NoSuchImage(name)
            if snapshot.version(name) != version:
                raise Changed(name, snapshot.items[name].caption, snapshot.version(name))
            changes = list(self._store.changes(name, snapshot.scan.places[name], caption, self.format))
            if changes:
                self._do(f"Caption of {name} changed.", changes)
            return self.snapshot

    def edit(
        self, edit: Edit, names: Sequence[str] | None, which: Filter, *, preview: bool
    ) -> tuple[int, list[Example]]:
        """Change many captions in one step, or with `preview` only tell how many that would be; with examples.

        Of those `names`, or without them of those that the filter finds. Raises PlainError; what was written before a
        disk refused stays, and can be undone.
        """
        with self._lock:
            self.refresh()
            snapshot = self.snapshot
            items = (
                _named(snapshot, names) if names is not None else which.of(snapshot.scan.items, self.facts(snapshot))
            )
            before = {item.name: item.caption for item in items}
            after = edited(edit, before)
            examples = [Example(name, before[name], caption) for name, caption in after.items()]
            if not preview and after:
                places, new_in = snapshot.scan.places, self.format
                changes = [
                    change for name, caption in after.items()
                    for change in self._store.changes(name, places[name], caption, new_in)
                ]  # fmt: skip
                self._do(edit.sentence(len(after)), changes)
            return len(after), examples

    def describe(
        self, captions: Mapping[str, str], seen: Mapping[str, str], *, what: str, work: str, new_in: str
    ) -> list[str]:
        """Write captions that were made of those that are `seen`, by name of their images; returns the names of images
        that are gone, or that somebody gave another caption meanwhile: these are left as they are.

        Calls for the same `work` are one step, told as `what`; `new_in` is the format of those that had no caption.
        Raises PlainError where a file cannot be written.
        """
        with self._lock:
            self.refresh()
            snapshot = self.snapshot
            known = {name: snapshot.items[name].caption for name in captions if name in snapshot.items}
            meant = {name for name, caption in known.items() if caption == seen[name]}
            changes = [
                change for name in captions if name in meant
                for change in self._store.changes(name, snapshot.scan.places[name], one_line(captions[name]), new_in)
            ]  # fmt: skip
            if changes:
                self._do(what, changes, work)
            return [name for name in captions if name not in meant]

    def focus(self, name: str, point: Point | None) -> Snapshot:
        """Set the point that a crop keeps in sight, or forget it. Raises NoSuchImage, and PlainError for a point that
        is none and a table that is wrong or cannot be written."""
        with self._lock:
            self.refresh()
            snapshot = self.snapshot
            if name not in snapshot.items:
                raise NoSuchImage(name)
            table = FocusTable(self.folder, snapshot.items)
            table.put(name, point)
            files = dict(snapshot.files)
            for path in (table.path, table.path.with_name(FOCUS + PREVIOUS)):
                stamp = stamp_of(path)
                if stamp:
                    files[path.name] = stamp
            self._snapshot = replace(snapshot, files=files, revision=snapshot.revision + 1)
            return self._snapshot

    def undo(self) -> Done:
        """Take the last step back. Raises PlainError where there is none, or others changed its captions since."""
        with self._lock:
            step = self._history.last
            if step is None:
                raise PlainError("There is nothing to undo: no caption of this data set was changed here.")
            count = self._carry(reversed_changes(step.changes()), step.what)
            self._history.undone()
            return Done(f"Undone: {step.what}", count)

    def redo(self) -> Done:
        """Do the step again that was taken back last. Raises PlainError as `undo` does."""
        with self._lock:
            step = self._history.next
            if step is None:
                raise PlainError("There is nothing to do again: nothing was undone since the last change.")
            count = self._carry(step.changes(), step.what, self._history.redone, self._history.undone)
            return Done(f"Done again: {step.what}", count)

    def _carry(
        self, changes: Sequence[Change], what: str, before: Callable[[], None] = lambda: None,
        forget: Callable[[], None] = lambda: None,
    ) -> int:  # fmt: skip
        """Make changes of the log; those that stand already, because a crash cut a step in two, are passed over, and so
        are those of images that are gone."""
        self.refresh()
        places = self.snapshot.scan.places
        found = [(change, text_at(places, change, self._store.path_of(change))) for change in changes]
        found = [(change, text) for change, text in found if change.name in places and text != change.after]
        foreign = dict.fromkeys(change.name for change, text in found if text != change.before)
        if foreign:
            raise PlainError(
                f"{len(foreign)} captions of this step were changed by someone else since, such as that of "
                f"{next(iter(foreign))}, and nothing was touched ({what}); change them by hand."
            )
        wanted = [change for change, _ in found]
        before()
        self._make(wanted, forget)
        return len({change.name for change in wanted})

    def _do(self, what: str, changes: Sequence[Change], work: str = "") -> None:
        self._history.do(what, changes, work)
        self._make(changes, self._history.not_done)

    def _make(self, changes: Sequence[Change], forget: Callable[[], None] = lambda: None) -> None:
        """Write, and take into the snapshot what was written, also when a disk refuses half-way; where it refuses at
        once, the step was none."""
        snapshot = self.snapshot
        written: dict[Path, Stamp | None] = {}
        try:
            for path, stamp in self._store.write(changes, snapshot.paths.keys() | set(snapshot.scan.excluded)):
                written[path] = stamp
        finally:
            made = [change for change in changes if self._store.path_of(change) in written]
            if written:
                self._snapshot = snapshot.with_changes(made, written, self.metadata)
            elif changes:
                forget()

    def _is_current(self, name: str) -> bool:
        """Whether every file in which a caption of the image may stand is as it was read."""
        snapshot = self.snapshot
        known = {place.path: place for place in snapshot.scan.places[name]}
        if stamp_of(snapshot.paths[name]) != snapshot.files.get(name):
            return False
        for path in self._store.candidates(name, known.values()):
            inside = path.is_relative_to(self.folder) and path != self.metadata
            kept = snapshot.files.get(path.relative_to(self.folder).as_posix()) if inside else snapshot.table
            if stamp_of(path) != kept:
                return False
            if path in known and path.suffix.lower() in SIDECARS and one_line(read_text(path).text) != known[path].text:
                self._memory.forget(path)  # changed twice within a tick of the clock
                self._snapshot = replace(snapshot, files={})
                return False
        return True


def _named(snapshot: Snapshot, names: Sequence[str]) -> list[Item]:
    gone = [name for name in names if name not in snapshot.items]
    if gone:
        raise PlainError(
            f"{len(gone)} of the images are not there any more, such as {gone[0]}; look at the list again."
        )
    return [snapshot.items[name] for name in dict.fromkeys(names)]
