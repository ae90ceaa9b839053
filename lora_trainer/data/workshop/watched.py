"""A data set kept open to be looked at: read once, and watched for what others change.

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
from typing import Literal

from lora_trainer.contracts import PlainError
from lora_trainer.data.caption_sources import SIDECARS, TABLES, absolute
from lora_trainer.data.focus import FOCUS
from lora_trainer.data.listing import listing, stamp_of
from lora_trainer.data.scan import Scan, check_folder, scan
from lora_trainer.data.workshop.memory import Memory
from lora_trainer.data.workshop.query import Facts, are_sentences
from lora_trainer.data.workshop.snapshot import Snapshot
from lora_trainer.data.workshop.store import FORMATS

State = Literal["scanning", "ready", "failed"]

LOOK_AGAIN = 2.0  # seconds: so often at most is looked whether others changed something
_SHARE = 20  # and at most this part of the time is spent on it, however large the folder
_COUNTED = 1 << 17  # captions whose tokens are remembered


class Watched:
    """One folder of images and captions, open to be looked at. Every method may be called from any thread."""

    def __init__(
        self, folder: Path, metadata: Path | None, *, cache: Path, tokens: Callable[[str], int], trigger: str = ""
    ) -> None:
        """`cache` is the folder that remembers what was read. Raises PlainError where there is no such folder;
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

    def touch(self) -> None:
        """Tell everybody who shows the data set that there is something new of it."""
        with self._lock:
            self._snapshot = replace(self.snapshot, revision=self.snapshot.revision + 1)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Within it nobody else changes anything here; afterwards what was changed is read."""
        with self._lock:
            self.refresh()
            try:
                yield
            finally:
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


def _told(scan: Scan) -> object:
    return [(item.name, item.caption, item.mask) for item in scan.items], scan.places
