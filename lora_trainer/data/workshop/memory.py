"""What was read of a folder's files, remembered on disk, so that a known folder opens without opening its files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_trainer.data.captions import Text, read_text
from lora_trainer.data.hashes import SETTLED, write_whole
from lora_trainer.data.images import image_size
from lora_trainer.data.listing import Stamp

Size = tuple[int, int]  # width, height in pixels, upright

_INDEX = "workshop.json"
_LAYOUT = 1  # of the file; another one is not read


class Memory:
    """Sizes of images and texts of caption files; a file whose stamp is as remembered is not opened again."""

    def __init__(self, folder: Path, cache: Path, seen: Callable[[], None] = lambda: None) -> None:
        """`cache` is the folder that remembers; `seen` is called for each image whose size was asked."""
        self._folder = folder
        self._index = cache / _INDEX
        self._seen = seen
        self._stamps: Mapping[str, Stamp] = {}
        self._sizes: dict[str, tuple[Stamp, Size]] = {}  # by path, as the texts
        self._texts: dict[str, tuple[Stamp, Text]] = {}
        self._changed = False
        with suppress(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            self._recall(json.loads(self._index.read_text("utf-8")))

    def begin(self, files: Mapping[str, Stamp]) -> None:
        """The files as they are now, by name relative to the folder."""
        folder = str(self._folder)
        self._stamps = {os.path.join(folder, name): stamp for name, stamp in files.items()}  # noqa: PTH118  # quick

    def size_of(self, path: Path) -> Size:
        """(width, height) of an image, upright. Raises PlainError as `image_size` does."""
        self._seen()
        key = str(path)
        stamp, known = self._stamps.get(key), self._sizes.get(key)
        if known and known[0] == stamp:
            return known[1]
        size = image_size(path)
        if stamp:
            self._sizes[key] = (stamp, size)
            self._changed = True
        return size

    def text_of(self, path: Path) -> Text:
        """The text of a caption file. Raises PlainError as `read_text` does."""
        key = str(path)
        stamp, known = self._stamps.get(key), self._texts.get(key)
        if known and known[0] == stamp:
            return known[1]
        text = read_text(path)
        if stamp:
            self._texts[key] = (stamp, text)
            self._changed = True
        return text

    def forget(self, path: Path) -> None:
        """Read this file anew when it is asked for next."""
        self._texts.pop(str(path), None)

    def save(self) -> None:
        """Write the index, if anything is new; a disk that refuses costs the next opening time, nothing else."""
        if not self._changed:
            return
        settled = time.time_ns() - int(SETTLED * 1e9)
        folder = len(str(self._folder)) + 1
        values = {
            "layout": _LAYOUT,
            "sizes": {
                path[folder:]: [*stamp, *size]
                for path, (stamp, size) in self._sizes.items() if path in self._stamps and stamp[1] < settled
            },
            "texts": {
                path[folder:]: [*stamp, *text]
                for path, (stamp, text) in self._texts.items() if path in self._stamps and stamp[1] < settled
            },
        }  # fmt: skip
        with suppress(OSError):
            write_whole(self._index, json.dumps(values).encode())
            self._changed = False

    def _recall(self, values: Mapping[str, Any]) -> None:
        if values["layout"] != _LAYOUT:
            return
        folder = str(self._folder)
        sizes = {
            os.path.join(folder, name): ((int(row[0]), int(row[1])), (int(row[2]), int(row[3])))  # noqa: PTH118
            for name, row in values["sizes"].items()
        }
        texts = {
            os.path.join(folder, name): ((int(row[0]), int(row[1])), _text(row[2], row[3]))  # noqa: PTH118
            for name, row in values["texts"].items()
        }
        self._sizes, self._texts = sizes, texts


def _text(text: Any, warning: Any) -> Text:
    if not isinstance(text, str) or not isinstance(warning, str | None):
        raise TypeError(f"no text: {text!r:.100}")
    return Text(text, warning)
