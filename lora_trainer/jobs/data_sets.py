"""The data sets that are open in this process, beside its jobs: they outlive a page, and a folder is opened once."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_trainer.contracts import Host, PlainError
from lora_trainer.data.buckets import CROPS, Crop, CropMode, Point
from lora_trainer.data.caption_sources import absolute
from lora_trainer.data.doctor.examine import Report
from lora_trainer.data.hashes import CACHE_FOLDER
from lora_trainer.data.scan import Item, check_folder
from lora_trainer.data.workshop.edits import ACTIONS, Edit
from lora_trainer.data.workshop.opened import Changed, NoSuchImage, Workshop
from lora_trainer.data.workshop.query import FLAGS, SORTS, Facts, Filter, Sort, ordered, tag_counts
from lora_trainer.data.workshop.snapshot import Snapshot
from lora_trainer.data.workshop.thumbs import Thumbs, Wanted, forget_thumbs, large_jpeg, thumb_file
from lora_trainer.jobs.checkup import RESOLUTION, token_counter
from lora_trainer.jobs.limits import check_allowed, paths_for
from lora_trainer.jobs.open_check import OpenCheck
from lora_trainer.jobs.open_crops import Asked, OpenCrops

__all__ = [
    "ACTIONS",
    "CROPS",
    "FLAGS",
    "SORTS",
    "Changed",
    "DataSets",
    "Edit",
    "Filter",
    "NoSuchImage",
    "Opened",
    "Page",
    "Shown",
]

TRANSPARENT = "transparent"  # the doctor's kind
MOST = 12  # open at once; of more the one that was left alone longest is closed


class Shown(NamedTuple):
    """An image as a page shows it."""

    name: str
    width: int
    height: int
    caption: str
    source: str
    tokens: int
    starts_with_trigger: bool
    flags: list[str]
    version: str
    mask: bool  # whether a file says which parts are learned, or the image has transparent ones
    focus: Point | None  # what its crop keeps in sight; None: the middle
    crop: Crop


class Page(NamedTuple):
    """Some of a data set's images."""

    total: int  # that were found
    revision: int
    images: list[Shown]


class Opened:
    """One open data set, with its small pictures and its examination."""

    def __init__(self, id: str, workshop: Workshop, cache: Path, thumbs: Thumbs, busy: Callable[[], bool]) -> None:
        self.id = id
        self.workshop = workshop
        self.openings = 1  # pages that opened it and did not close it yet
        self.used = time.monotonic()
        self.resolution = RESOLUTION  # pixels that its pictures are judged for
        self.crop: CropMode = "center"  # and what a training does with shapes that are not their bucket's
        self._cache = cache
        self._thumbs = thumbs
        self._check = OpenCheck(workshop, cache, busy)
        self._crops = OpenCrops(workshop, busy)

    def begin(self) -> None:
        """Read the folder, then make its small pictures; for a thread of its own."""
        self.workshop.read()
        if self.workshop.state == "ready":
            images = self.workshop.snapshot.scan.items
            forget_thumbs(self._cache, [self._wanted(item.name).target for item in images])
            self._thumbs.later(self.id, (self._wanted(item.name) for item in images))

    def thumb(self, name: str) -> Path:
        """The file of an image's small picture, made now if need be. Raises NoSuchImage, and PlainError for one that
        cannot be read."""
        return self._thumbs.get(self._wanted(name))

    def large(self, name: str) -> bytes:
        """The image for a look at it alone, as JPEG. Raises as `thumb` does."""
        return large_jpeg(self._wanted(name).source)

    def page(self, which: Filter, sort: Sort, *, descending: bool, offset: int, limit: int) -> Page:
        """Some of the images, as they are on the disk now; their small pictures and those of the next page are made
        first. Raises PlainError where the folder cannot be read."""
        workshop = self.workshop
        snapshot = workshop.watch()
        facts = workshop.facts(snapshot)
        found = ordered(which.of(snapshot.scan.items, facts), sort, facts, descending=descending)
        self._thumbs.soon([self._wanted(item.name) for item in found[offset : offset + 2 * limit]])
        return Page(len(found), snapshot.revision, self._shown(found[offset : offset + limit], snapshot, facts))

    def _shown(self, items: Sequence[Item], snapshot: Snapshot, facts: Facts) -> list[Shown]:
        framed = self._crops.of(items, snapshot, Asked(self.resolution, self.crop))
        return [
            Shown(
                item.name, item.width, item.height, item.caption, item.caption_source, facts.tokens(item.caption),
                facts.starts_with_trigger(item), flags := facts.flags(item), snapshot.version(item.name),
                item.mask is not None or TRANSPARENT in flags, *one,
            ) for item, one in zip(items, framed, strict=True)
        ]  # fmt: skip

    def focus(self, name: str, point: Point | None) -> Shown:
        """Set the point that the image's crop keeps in sight, or forget it. Raises as `Workshop.focus` does."""
        snapshot = self.workshop.focus(name, point)
        return self._shown([snapshot.items[name]], snapshot, self.workshop.facts(snapshot))[0]

    def focused(self) -> tuple[int, list[str]]:
        """How many images have a point of their own, and what there is to say of the table."""
        return self._crops.told(self.workshop.snapshot, Asked(self.resolution, self.crop))

    def names(self, which: Filter, sort: Sort, *, descending: bool) -> tuple[list[str], int]:
        """The names of all images of a list, in its order, and the revision they are of. Raises as `page` does."""
        snapshot = self.workshop.watch()
        facts = self.workshop.facts(snapshot)
        found = ordered(which.of(snapshot.scan.items, facts), sort, facts, descending=descending)
        return [item.name for item in found], snapshot.revision

    def tags(self, text: str) -> tuple[list[tuple[str, int]], bool]:
        """(tag, images) of those that hold the text, the most frequent first; and whether they are sentences' words."""
        snapshot = self.workshop.watch()
        facts = self.workshop.facts(snapshot)
        return tag_counts(snapshot.scan.items, facts, text), facts.sentences

    def mark(self, name: str) -> str:
        """Changes when the image does."""
        size, changed = self.workshop.snapshot.files.get(name, (0, 0))
        return f"{size:x}-{changed:x}"

    def check(self) -> Report:
        """What is wrong with the data set, as far as it was looked; looking goes on in the background."""
        return self._check.report(self.resolution)

    def fix(self, kinds: Sequence[str]) -> list[str]:
        """Apply the remedies of these kinds; a sentence for each. Raises PlainError where a file cannot be written."""
        return self._check.fix(kinds, self.resolution)

    def close(self) -> None:
        """Begin nothing more for it."""
        self._thumbs.forget(self.id)
        self._check.close()
        self._crops.close()

    def _wanted(self, name: str) -> Wanted:
        snapshot = self.workshop.snapshot
        if name not in snapshot.paths:
            raise NoSuchImage(name)
        return Wanted(snapshot.paths[name], thumb_file(self._cache, name, snapshot.files.get(name, (0, 0))))


class DataSets:
    """Opens data sets, and knows the open ones. Every method may be called from any thread."""

    def __init__(self, host: Host, busy: Callable[[], bool]) -> None:
        """`busy` tells whether a job runs, which work in the background must not slow down."""
        self._host = host
        self._busy = busy
        self._thumbs = Thumbs(busy)
        self._open: dict[str, Opened] = {}
        self._lock = threading.Lock()
        runs = host.paths().runs
        self._elsewhere = runs / "data_sets" if runs else None  # None: a folder of this process alone, once needed
        self._tokens = token_counter()

    def open(
        self, folder: str, metadata: str | None = None, *, trigger: str | None = None, resolution: int | None = None,
        crop: CropMode | None = None, by_page: bool = False,
    ) -> Opened:  # fmt: skip
        """The data set of that folder, open; reading it goes on in the background. One that is open already is the same
        for all. Raises PlainError. `by_page` as in `limits.load_allowed`."""
        paths = paths_for(self._host, by_page=by_page)
        for what, path in (("folder", folder), ("metadata", metadata)):
            if path:
                check_allowed(path, paths, what)
        place = absolute(Path(folder).expanduser())
        table = absolute(Path(metadata).expanduser()) if metadata else None
        check_folder(place, table)
        with self._lock:
            opened = self._known(place, table) or self._opened(place, table)
            opened.used = time.monotonic()
            opened.workshop.trigger = opened.workshop.trigger if trigger is None else trigger
            opened.resolution = resolution or opened.resolution
            opened.crop = crop or opened.crop
        return opened

    @property
    def host(self) -> Host:
        """Whose folders and captioners they use."""
        return self._host

    def of(self, id: str) -> Opened:
        """The open data set of that id. Raises KeyError."""
        with self._lock:
            opened = self._open[id]
            opened.used = time.monotonic()
            return opened

    def close(self, id: str) -> None:
        """A page is done with it; with the last one it is closed. Raises KeyError."""
        with self._lock:
            opened = self._open[id]
            opened.openings -= 1
            if opened.openings <= 0:
                self._close(opened)

    def close_all(self) -> None:
        """For the end of a server."""
        with self._lock:
            for opened in list(self._open.values()):
                self._close(opened)
            self._thumbs.close()

    def _known(self, folder: Path, metadata: Path | None) -> Opened | None:
        for opened in self._open.values():
            workshop = opened.workshop
            if (workshop.folder, workshop.metadata) == (folder, metadata) and workshop.state != "failed":
                opened.openings += 1
                return opened
        return None

    def _opened(self, folder: Path, metadata: Path | None) -> Opened:
        cache = self._cache_of(folder)
        workshop = Workshop(folder, metadata, cache=cache, tokens=self._tokens)
        opened = Opened(secrets.token_urlsafe(16), workshop, cache, self._thumbs, self._busy)
        while len(self._open) >= MOST:
            self._close(min(self._open.values(), key=lambda one: one.used))
        self._open[opened.id] = opened
        threading.Thread(target=opened.begin, name="data-set", daemon=True).start()
        return opened

    def _close(self, opened: Opened) -> None:
        opened.close()
        del self._open[opened.id]

    def _cache_of(self, folder: Path) -> Path:
        """The folder that remembers: hidden in the data set's, or beside the runs where that is closed to writing."""
        cache = folder / CACHE_FOLDER
        try:
            if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
                cache.mkdir(parents=True, exist_ok=True)
                return cache
        except OSError:
            pass
        name = hashlib.blake2s(str(folder).encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()
        self._elsewhere = self._elsewhere or Path(tempfile.mkdtemp(prefix="lora_trainer."))
        elsewhere = self._elsewhere / name
        try:
            elsewhere.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise PlainError(
                f"Neither {cache} nor {elsewhere} can be written ({error.strerror}), so no small pictures can be kept; "
                "make room or change the permissions of one of them."
            ) from error
        return elsewhere
