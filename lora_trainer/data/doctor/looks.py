"""Looks at the images of a folder: taken by several threads, remembered on disk for the next time."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_trainer.contracts import Prepared
from lora_trainer.data.doctor.look import Look, look_at
from lora_trainer.data.hashes import CACHE_FOLDER, SETTLED, write_whole
from lora_trainer.data.images import image_size
from lora_trainer.data.scan import Item

INDEX = CACHE_FOLDER / "looks.json"

_LAYOUT = 1  # of what is remembered; another one is not read, so that a change of a measure leaves no old values
_READERS = max(2, min(8, os.cpu_count() or 2))  # threads; decoding lets the others run
_AHEAD = 4  # files for each reader, asked for and not yet taken: bounds the memory, and what a stop has to wait for
_LARGE = 24_000_000  # pixels; of such images only one is decoded at a time, for the memory's sake
_SAVE_EVERY = 10.0  # seconds: what a crash can lose


_TYPES = [str, int, str, float, float, bool, bool, int, int, str]  # of a Look's fields, as JSON gives them back


class Looks:
    """What was seen of a folder's images; a file of the same size and time of change is not looked at again."""

    def __init__(self, folder: Path, index: Path | None = None, readers: int = _READERS) -> None:
        """`index` is the file that remembers (default: hidden in the folder); a broken one only costs time. `readers`
        are the threads that look."""
        self._folder = folder
        self._index = index or folder / INDEX
        self._readers = readers
        self._large = threading.Lock()
        self._seen: dict[str, tuple[int, int, Look]] = {}  # name: bytes, nanoseconds, look
        self._stored_at: dict[str, tuple[int, int, Look]] = {}  # the same by path, as it was stored; perhaps outdated
        self._fresh: dict[str, Look] = {}  # of files that are too young to be remembered
        with suppress(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            stored = json.loads(self._index.read_text("utf-8"))
            if stored["layout"] == _LAYOUT:
                rows = stored["looks"].items()
                # join: ten times as quick as the same with Path
                self._stored_at = {os.path.join(folder, name): _stored(row) for name, row in rows}  # noqa: PTH118

    def of(self, items: Iterable[Item]) -> dict[str, Look]:
        """Looks by name, of those images that `take` looked at or that `recall` found remembered."""
        seen = {name: look for name, (_, _, look) in list(self._seen.items())} | self._fresh  # list: while others look
        return {item.name: seen[item.name] for item in items if item.name in seen}

    def size_of(self, path: Path) -> tuple[int, int]:
        """(width, height) in pixels, upright; of a file that is remembered without its being opened.

        Raises PlainError as `image_size` does.
        """
        kept = self._stored_at.get(str(path))
        if kept and self._is_as_it_was(path, kept):
            return kept[2].width, kept[2].height
        return image_size(path)

    def recall(self, items: Sequence[Item]) -> list[Item]:
        """Take what is remembered of files that are as they were; returns the others."""
        return [item for item in items if not self._known(item)]

    def take(self, items: Sequence[Item]) -> Generator[Prepared, None, None]:
        """Look at every image that is not remembered; may be left at any time, and what was seen is then kept."""
        waiting = self.recall(items)
        done = len(items) - len(waiting)
        yield Prepared("pictures", done, len(items))
        pool = ThreadPoolExecutor(self._readers, thread_name_prefix="doctor")
        saved = time.monotonic()
        try:
            asked: deque[tuple[Item, Future[tuple[int, int, Look]]]] = deque()
            rest = iter(waiting)
            while True:
                for item in rest:
                    asked.append((item, pool.submit(self._look, item)))
                    if len(asked) >= _AHEAD * self._readers:
                        break
                if not asked:
                    break
                item, future = asked.popleft()
                self._keep(item, *future.result())
                done += 1
                yield Prepared("pictures", done, len(items))
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            if waiting:
                self._save()

    def _known(self, item: Item) -> bool:
        kept = self._seen.get(item.name) or self._stored_at.get(str(item.path))
        if not kept or not self._is_as_it_was(item.path, kept):
            self._seen.pop(item.name, None)
            return False
        self._seen[item.name] = kept
        return True

    @staticmethod
    def _is_as_it_was(path: Path, kept: tuple[int, int, Look]) -> bool:
        try:
            stat = path.stat()
        except OSError:
            return False
        return kept[:2] == (stat.st_size, stat.st_mtime_ns)

    def _look(self, item: Item) -> tuple[int, int, Look]:
        """Runs in a reader's thread; size and time are taken before the content, so that a change between is seen."""
        try:
            stat = item.path.stat()
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:
            size, changed = -1, -1
        if item.width * item.height < _LARGE:
            return size, changed, look_at(item.path)
        with self._large:
            return size, changed, look_at(item.path)

    def _keep(self, item: Item, size: int, changed: int, look: Look) -> None:
        # A fault may lie in what surrounds the file (permissions, an unplugged disk), so it is asked anew.
        if size < 0 or look.fault or time.time() - changed / 1e9 <= SETTLED:
            self._fresh[item.name] = look
        else:
            self._seen[item.name] = (size, changed, look)

    def _save(self) -> None:
        rows = {name: [size, changed, *look] for name, (size, changed, look) in self._seen.items()}
        with suppress(OSError):  # a folder that may not be written costs the next call a second look, nothing else
            write_whole(self._index, json.dumps({"layout": _LAYOUT, "looks": rows}).encode())


def _stored(row: Sequence[Any]) -> tuple[int, int, Look]:
    """A row of the index. Raises ValueError, TypeError or IndexError where it is none."""
    kept = int(row[0]), int(row[1]), Look(*row[2:])
    if [type(value) for value in kept[2]] != _TYPES:
        raise ValueError(f"no look: {row!r:.100}")
    return kept
