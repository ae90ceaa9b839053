"""What a training would keep of the images of an opened data set, and the points that others than it have set."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lora_trainer.contracts import PlainError
from lora_trainer.data.buckets import Buckets, Crop, CropMode, Point
from lora_trainer.data.focus import FOCUS
from lora_trainer.data.framing import Framing
from lora_trainer.data.saliency import WITHOUT, available
from lora_trainer.data.scan import Item
from lora_trainer.data.workshop.opened import Workshop
from lora_trainer.data.workshop.snapshot import Snapshot
from lora_trainer.jobs.checkup import STEP

_YIELD = 3.0  # while something else runs, looking for points rests so many times as long as it works


class Asked(NamedTuple):
    """The training that is meant."""

    resolution: int  # pixels
    crop: CropMode


class Framed(NamedTuple):
    """An image and what is kept of it."""

    focus: Point | None
    crop: Crop


class OpenCrops:
    """The crops of one opened data set. Every method may be called from any thread."""

    def __init__(self, workshop: Workshop, busy: Callable[[], bool]) -> None:
        self._workshop = workshop
        self._busy = busy
        self._lock = threading.Lock()
        self._known: tuple[tuple[object, ...], Framing | None, str] | None = None  # of what, crops, fault
        self._looker: threading.Thread | None = None
        self._closed = threading.Event()

    def of(self, items: Sequence[Item], snapshot: Snapshot, asked: Asked) -> list[Framed]:
        """Focal point and crop of each image; points that are not known are looked for in the background, and the
        revision grows when they are found."""
        framing, _ = self._framing(snapshot, asked)
        if framing is None:
            buckets = self._buckets(asked)
            return [Framed(None, buckets.fit(*item.size)) for item in items]
        waiting = framing.undecided(items)
        if waiting and available():
            self._look(framing, waiting)
        return [Framed(framing.focus_of(item), framing.crop_of(item)) for item in items]

    def told(self, snapshot: Snapshot, asked: Asked) -> tuple[int, list[str]]:
        """How many images have a point in the table, and what there is to say of it."""
        framing, fault = self._framing(snapshot, asked)
        warnings = [fault] if fault else []
        if asked.crop == "focal" and not available():
            warnings.append(WITHOUT)
        return (framing.points if framing else 0), warnings

    def close(self) -> None:
        """Look for no more points."""
        self._closed.set()

    @staticmethod
    def _buckets(asked: Asked) -> Buckets:
        return Buckets(asked.resolution, min(STEP, asked.resolution), crop=asked.crop)

    def _framing(self, snapshot: Snapshot, asked: Asked) -> tuple[Framing | None, str]:
        """The crops, and why there are none where the table of points is wrong."""
        key = (id(snapshot.scan), snapshot.files.get(FOCUS), asked)
        with self._lock:
            if self._known is None or self._known[0] != key:
                scan = snapshot.scan
                try:
                    self._known = (key, Framing(scan.folder, scan.items, self._buckets(asked)), "")
                except PlainError as error:
                    self._known = (key, None, str(error))
            return self._known[1:]

    def _look(self, framing: Framing, items: Sequence[Item]) -> None:
        with self._lock:
            if self._looker and self._looker.is_alive():
                return  # the page asks again once that one is done
            self._looker = threading.Thread(target=self._find, args=(framing, items), name="crops", daemon=True)
            self._looker.start()

    def _find(self, framing: Framing, items: Sequence[Item]) -> None:
        begun = time.monotonic()
        for _ in framing.find(items):
            if self._closed.wait(_YIELD * (time.monotonic() - begun) if self._busy() else 0):
                return
            begun = time.monotonic()
        self._workshop.touch()
