"""Where the eye goes in a picture, for images of which nobody has said it; found once, remembered in the folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lora_trainer.contracts import PlainError, Prepared
from lora_trainer.data.buckets import Point
from lora_trainer.data.hashes import CACHE_FOLDER, SETTLED, write_whole
from lora_trainer.data.images import load_small
from lora_trainer.data.readers import in_order

INDEX = CACHE_FOLDER / "salient.json"
WITHOUT = (
    "data.crop: focal looks for the subject of an image with the package smartcrop, which is not installed: pip "
    "install smartcrop, give each image a focal point, or take data.crop: center."
)

_LAYOUT = 1  # of what is remembered, and of how it is found
_SIDE = 512  # pixels of the longest side at which a picture is judged
_GRID = 8  # pixels between two places that smartcrop tries, and the side of what it sums up
_AS_GOOD = 0.01  # of the spread between the best and the worst place: differences below it are chance


class Wanted(NamedTuple):
    """An image, and the shape of the part of it that is kept."""

    path: Path
    shape: tuple[int, int]  # width, height; only their ratio counts


def available() -> bool:
    """Whether the library is there."""
    return find_spec("smartcrop") is not None


def salient_point(image: Image.Image, shape: tuple[int, int]) -> Point:
    """The middle of the part of that shape, as large as it fits into the image (8-bit RGB), that holds the most.

    What holds the most is judged by smartcrop (the Python port of Jonas Wagner's smartcrop.js): details, skin and
    saturated colours, weighed by their place in the part. Of places that are as good as the best one the nearest to the
    middle is taken, where the library would take the first. An image without anything to see gives the middle, and so
    does one that is too thin to be judged. Raises PlainError where the library is missing.
    """
    judge = _judge()
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    scale = min(small.width / shape[0], small.height / shape[1])
    part = int(shape[0] * scale), int(shape[1] * scale)
    if min(part) < 2 * _GRID:
        return 0.5, 0.5
    found: list[dict[str, Any]] = judge.analyse(
        small, *part, max_scale=1, min_scale=1, num_scale_steps=1, step=_GRID
    )["crops"]
    scores = [crop["score"] for crop in found]
    bound = max(scores) - _AS_GOOD * (max(scores) - min(scores))
    points = [
        ((crop["x"] + part[0] / 2) / small.width, (crop["y"] + part[1] / 2) / small.height)
        for crop, score in zip(found, scores, strict=True) if score >= bound
    ]  # fmt: skip
    return min(points, key=lambda point: (abs(point[0] - 0.5) + abs(point[1] - 0.5), point))


def _judge() -> Any:
    try:
        from smartcrop import SmartCrop
    except ImportError as error:
        raise PlainError(WITHOUT) from error

    class Judge(SmartCrop):
        """Sees no edges where the picture ends: Pillow's filters leave the outermost pixels as they are, and
        smartcrop takes their brightness for details."""

        def detect_edge(self, cie_image: Image.Image) -> Image.Image:
            edges = super().detect_edge(cie_image)
            inside = edges.crop((1, 1, edges.width - 1, edges.height - 1))
            edges.paste(0, (0, 0, *edges.size))
            edges.paste(inside, (1, 1))
            return edges

    return Judge()


class Salient:
    """Salient points of the images of a folder; of an image as it was no point is looked for again."""

    def __init__(self, folder: Path) -> None:
        self._index = folder / INDEX
        self._known: dict[str, list[Any]] = {}  # path and shape: bytes, nanoseconds, x, y
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            stored = json.loads(self._index.read_text("utf-8"))
            if stored["layout"] == _LAYOUT:
                self._known = {str(key): row for key, row in stored["points"].items() if _is_row(row)}

    def recall(self, wanted: Wanted) -> Point | None:
        """The point of an image that is as it was when it was looked at; None for others."""
        row = self._known.get(_key(wanted))
        return (row[2], row[3]) if row and row[:2] == _state(wanted.path) else None

    def find(self, wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, Point] | Prepared]:
        """The point of each image, and how far it is in between; may be left at any time, what was found is kept.

        A damaged image gives the middle: whoever decodes it next tells what is wrong with it.
        """
        fresh = 0
        try:
            for done, (one, (state, point)) in enumerate(in_order(self._look, wanted, "salient"), 1):
                if state and time.time() - state[1] / 1e9 > SETTLED:
                    self._known[_key(one)] = [*state, *point]
                    fresh += 1
                yield one, point
                yield Prepared("focal points", done, len(wanted))
        finally:
            if fresh:
                with suppress(OSError):  # costs the next run a second look, and nothing else
                    kept = {"layout": _LAYOUT, "points": self._known}
                    write_whole(self._index, json.dumps(kept).encode())

    def _look(self, wanted: Wanted) -> tuple[list[int], Point]:
        state = _state(wanted.path)  # before the content, so that a change between is seen
        known = self.recall(wanted)
        if known:
            return state, known
        try:
            small = load_small(wanted.path.read_bytes(), wanted.path, _SIDE)
            return state, salient_point(small.image, wanted.shape)
        except (PlainError, OSError):
            return [], (0.5, 0.5)


def _key(wanted: Wanted) -> str:
    return f"{wanted.path.absolute()} {wanted.shape[0]}x{wanted.shape[1]}"


def _state(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and [type(cell) for cell in row] == [int, int, float, float]
