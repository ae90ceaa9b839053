"""A data set kept open: read once, watched for what others change, edited with nothing lost.

Readers take a snapshot, which never changes, and wait for nobody; whoever changes something holds the lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from lora_trainer.contracts import PlainError
from lora_trainer.data.buckets import Point
from lora_trainer.data.caption_files import PREVIOUS
from lora_trainer.data.caption_sources import SIDECARS, TABLES, absolute
from lora_trainer.data.captions import one_line, read_text
from lora_trainer.data.focus import FOCUS, FocusTable
from lora_trainer.data.listing import Stamp, listing, stamp_of
from lora_trainer.data.scan import Item, Scan, check_folder, scan
from lora_trainer.data.workshop.edits import LONGEST, Edit, edited
from lora_trainer.data.workshop.history import Change, History
from lora_trainer.data.workshop.memory import Memory
from lora_trainer.data.workshop.query import Facts, Filter, are_sentences
from lora_trainer.data.workshop.snapshot import Snapshot
from lora_trainer.data.workshop.store import FORMATS, Store, reversed_changes, text_at

State = Literal["scanning", "ready", "failed"]

LOOK_AGAIN = 2.0  # seconds: so often at most is looked whether others changed something
_SHARE = 20  # and at most this part of the time is spent on it, however large the folder
_COUNTED = 1 << 17  # captions whose tokens are remembered


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


class Workshop:
    """One folder of images and captions, open. Every method may be called from any thread."""

    def __init__(
        self, folder: Path, metadata: Path | None, *, cache: Path, tokens: Callable[[str], int], trigger: str = ""
    ) -> None:
        """`cache` is the folder that remembers what was read and done. Raises PlainError where there is no such folder;
        what is in it is read by `read`."""
        self.folder = absolute(folder)
        self.metadata = absolute(metadata) if metadata else None
        check_folder(self.folder, self.metadata)
        self.trigger = trigger
        self.state: State = "scanning"
        self.message = ""
        self.seen = 0  # images whose size is known, while scanning
        self.found: Mapping[str, Sequence[str]] = {}  # the doctor's findings, by image
        self.tokens = lru_cache(_COUNTED)(tokens)
        self._memory = Memory(self.folder, cache, self._count)
        self._history = History(cache)
        self._store = Store(self.folder, self.metadata)
        self._snapshot: Snapshot | None = None
        self._lock = threading.RLock()
        self._looked = self._cost = 0.0  # when the folder was last listed, and seconds that took

    # --- reading ---

    def read(self) -> None:
        """Read the folder for the first time; afterwards it is ready, or failed with a message."""
        try:
            with self._lock:
                self._read()
        except PlainError as error:
            self.message = str(error)
            self.state = "failed"

    @property
    def snapshot(self) -> Snapshot:
        """The data set as it was read last. Raises PlainError before it was, and where it could not be."""
        if self._snapshot is None:
            raise PlainError(self.message or f"{self.folder} is still being read; ask again in a moment.")
        return self._snapshot

    def watch(self) -> Snapshot:
        """The snapshot, after a look whether others changed something, if the last one was long enough ago."""
        pause = max(LOOK_AGAIN, _SHARE * self._cost)
        if self.state != "scanning" and time.monotonic() - self._looked > pause and self._lock.acquire(blocking=False):
            try:
                self.refresh()
            finally:
                self._lock.release()
        return self.snapshot

    def refresh(self) -> None:
        """Look whether others changed something, and read it; a folder that is gone makes the data set fail."""
        with self._lock:
            try:
                self._read()
            except PlainError as error:
                self.message, self.state = str(error), "failed"
                raise

    def _read(self) -> None:
        """List the folder, and read what has another stamp than before."""
        begun = time.monotonic()
        check_folder(self.folder, self.metadata)
        files, table = listing(self.folder), stamp_of(self.metadata) if self.metadata else None
        before = self._snapshot
        if before is None or self.state == "failed" or (files, table) != (before.files, before.table):
            self._memory.begin(files)
            found = scan(self.folder, self.metadata, self._memory.size_of, self._memory.text_of, files)
            self._memory.save()
            points = before is not None and before.files.get(FOCUS) != files.get(FOCUS)
            revision = before.revision + (points or _told(before.scan) != _told(found)) if before else 1
            self._snapshot = Snapshot(found, files, table, revision, before.edited if before else {})
            self.state, self.message = "ready", ""
        self._looked = time.monotonic()
        self._cost = self._looked - begun

    def _count(self) -> None:
        self.seen += self._snapshot is None

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

    def touch(self) -> None:
        """Tell everybody who shows the data set that there is something new of it."""
        with self._lock:
            self._snapshot = replace(self.snapshot, revision=self.snapshot.revision + 1)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Within it nobody else changes anything here; afterwards what was changed is read."""
        with self._lock:
            self.refresh()
            yield
            self.refresh()

    # --- telling ---

    @property
    def revision(self) -> int:
        """Grows with every change of a caption or a focal point, and when images or masks come or go; 0 before the
        folder was read."""
        return self._snapshot.revision if self._snapshot else 0

    @property
    def formats(self) -> list[str]:
        """Where captions stand now."""
        sources = self.snapshot.scan.sources
        names = dict.fromkeys([*FORMATS, *sorted(sources)])
        return [name for name in names if name in sources or self._has_table(name)]

    @property
    def format(self) -> str:
        """Where captions of images that have none will go: where the others are, and into a table if there are none."""
        if self.metadata or self._has_table(TABLES[0]):
            return TABLES[0]
        sources = self.snapshot.scan.sources
        return (
            max(SIDECARS, key=lambda ending: sources.get(ending, 0)) if any(map(sources.get, SIDECARS)) else TABLES[0]
        )

    def _has_table(self, name: str) -> bool:
        return name == TABLES[0] and (self.metadata is not None or name in self.snapshot.files)

    @property
    def writable(self) -> bool:
        """Whether captions can be saved."""
        place = self.metadata.parent if self.metadata else self.folder
        return os.access(place, os.W_OK | os.X_OK)

    def facts(self, snapshot: Snapshot) -> Facts:
        """What images can be asked about."""
        captions = [item.caption for item in snapshot.scan.items if item.caption]
        return Facts(
            self.tokens, self.trigger, snapshot.changed, self.found,
            are_sentences(captions[:: max(1, len(captions) // 500)]),
        )  # fmt: skip

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return self._history.last is not None

    @property
    def can_redo(self) -> bool:
        """Whether there is a step to do again."""
        return self._history.next is not None

    # --- editing ---

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


def _told(scan: Scan) -> object:
    return [(item.name, item.caption, item.mask) for item in scan.items], scan.places


def _named(snapshot: Snapshot, names: Sequence[str]) -> list[Item]:
    gone = [name for name in names if name not in snapshot.items]
    if gone:
        raise PlainError(
            f"{len(gone)} of the images are not there any more, such as {gone[0]}; look at the list again."
        )
    return [snapshot.items[name] for name in dict.fromkeys(names)]
