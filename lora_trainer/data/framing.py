"""Which part of each image is trained on: the one place that decides it, for the trainer and for whoever shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_trainer.contracts import PlainError, Prepared
from lora_trainer.data.buckets import Buckets, Crop, Point
from lora_trainer.data.focus import FOCUS, FocusTable
from lora_trainer.data.saliency import WITHOUT, Salient, Wanted, available
from lora_trainer.data.scan import Item


class Framing:
    """The crops of the images of one folder."""

    def __init__(self, folder: Path, items: Sequence[Item], buckets: Buckets) -> None:
        """Reads the table of focal points where they count. Raises PlainError for a table that is wrong."""
        self._buckets = buckets
        self._folder = folder
        self._table = FocusTable(folder, [item.name for item in items]) if buckets.crop != "none" else None
        self._salient = Salient(folder) if buckets.crop == "focal" else None
        self._found: dict[str, Point] = {}

    def focus_of(self, item: Item) -> Point | None:
        """What is cut away lies around this point: the one in the table, or else what was found; None: the middle."""
        known = (self._table.of(item.name) if self._table else None) or self._found.get(item.name)
        if known is None and self._salient and (wanted := self._wanted(item)):
            known = self._salient.recall(wanted)
            if known:
                self._found[item.name] = known
        return known

    @property
    def points(self) -> int:
        """How many images have a point in the table."""
        return self._table.points if self._table else 0

    def crop_of(self, item: Item) -> Crop:
        """How the image is scaled and cut, as far as its focal point is known; its bucket does not hang on that."""
        return self._buckets.fit(*item.size, focus=self.focus_of(item))

    def undecided(self, items: Sequence[Item]) -> list[Item]:
        """Those of these images for which `find` would look for a focal point."""
        if self._salient is None:
            return []
        return [item for item in items if self.focus_of(item) is None and self._wanted(item)]

    def check(self, items: Sequence[Item]) -> None:
        """Raise PlainError where points have to be looked for and the library for it is missing."""
        if not available() and self.undecided(items):
            raise PlainError(WITHOUT)

    def find(self, items: Sequence[Item]) -> Iterator[Prepared]:
        """Look for the focal points that are not known; may be left at any time."""
        waiting = {wanted: item for item in self.undecided(items) if (wanted := self._wanted(item))}
        if self._salient is None or not waiting:
            return
        for found in self._salient.find(list(waiting)):
            if isinstance(found, Prepared):
                yield found
            else:
                wanted, point = found
                self._found[waiting[wanted].name] = point

    def warnings(self) -> Iterator[str]:
        """Sentences for the user."""
        if self._table is None and (self._folder / FOCUS).is_file():
            yield (
                f"{FOCUS} names focal points, which data.crop: {self._buckets.crop} passes by: take data.crop: center "
                "to have them count."
            )

    def _wanted(self, item: Item) -> Wanted | None:
        """What to look for; None where nothing of the image is cut away."""
        crop = self._buckets.fit(*item.size)
        return Wanted(item.path, crop.size) if crop.free else None
