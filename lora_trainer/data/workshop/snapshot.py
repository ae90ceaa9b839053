"""An opened data set at one moment."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lora_trainer.data.caption_sources import SIDECARS, TABLES, Place
from lora_trainer.data.listing import Stamp
from lora_trainer.data.scan import Item, Scan, recaptioned
from lora_trainer.data.workshop.history import Change


@dataclass(frozen=True)
class Snapshot:
    """The data set at one moment."""

    scan: Scan
    files: Mapping[str, Stamp]
    table: Stamp | None  # of a table that lies elsewhere
    revision: int
    edited: Mapping[str, int] = field(default_factory=dict)  # by image: when its caption was changed here, nanoseconds

    @cached_property
    def items(self) -> Mapping[str, Item]:
        """Every image by its name."""
        return {item.name: item for item in self.scan.items}

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """The file of every image by its name, of those that cannot be read too, and of nothing else."""
        bad = {one.path.relative_to(self.scan.folder).as_posix(): one.path for one in self.scan.unreadable}
        return {item.name: item.path for item in self.scan.items} | bad

    @cached_property
    def sharing(self) -> Mapping[str, Sequence[str]]:
        """Images by their name without its ending: those share a text file."""
        found: dict[str, list[str]] = defaultdict(list)
        for item in self.scan.items:
            found[item.name.rpartition(".")[0]].append(item.name)
        return found

    def version(self, name: str) -> str:
        """The caption of an image as it is on the disk, everywhere it stands, in some letters."""
        told = [(place.source, place.text) for place in self.scan.places[name]]
        return hashlib.blake2s(repr(told).encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()

    def changed(self, item: Item) -> int:
        """When image or caption were last changed, in nanoseconds since 1970: here, or as their files tell; a table
        tells nothing of its rows."""
        stem = item.name.rpartition(".")[0]
        names = (item.name, *(stem + ending for ending in SIDECARS))
        return max([self.edited.get(item.name, 0), *(self.files.get(name, (0, 0))[1] for name in names)])

    def with_changes(
        self, changes: Sequence[Change], written: Mapping[Path, Stamp | None], table: Path | None
    ) -> Snapshot:
        """What it is after these changes, for whose files `written` has the stamps; `table` is one that lies elsewhere.

        Images that share a text file share the change.
        """
        folder, places = self.scan.folder, dict[str, list[Place]]()
        for change in changes:
            path = folder / change.path
            beside = self.sharing[change.name.rpartition(".")[0]] if change.source in SIDECARS else [change.name]
            for name in beside:
                known = places.get(name, list(self.scan.places[name]))
                places[name] = _with(known, Place(path, change.source, change.after or ""), gone=change.after is None)
        files, outside = dict(self.files), self.table
        for path, stamp in written.items():
            if path == table:
                outside = stamp
            if path.is_relative_to(folder):
                files.pop(path.relative_to(folder).as_posix(), None)
                if stamp:
                    files[path.relative_to(folder).as_posix()] = stamp
        now = dict.fromkeys(places, time.time_ns())
        found = recaptioned(self.scan, {name: tuple(known) for name, known in places.items()})
        return Snapshot(found, files, outside, self.revision + 1, {**self.edited, **now})


def _with(places: Sequence[Place], new: Place, *, gone: bool) -> list[Place]:
    """The places with one of them changed, added or gone, in the order they are asked."""
    order = (*TABLES, *SIDECARS)
    kept = [place for place in places if place.path != new.path]
    kept += [] if gone else [new]
    return sorted(kept, key=lambda place: order.index(place.source) if place.source in order else -1)
