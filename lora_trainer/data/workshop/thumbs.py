"""Small pictures to look through: made once, in the background, those that somebody looks at first."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookLong
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lora_trainer.contracts import PlainError
from lora_trainer.data.hashes import write_whole
from lora_trainer.data.images import load_small
from lora_trainer.data.listing import Stamp

SIDE = 256  # pixels, the longest
LARGE_SIDE = 1280  # pixels, for a look at one of them

_FOLDER = "thumbs"
_GREY = (128, 128, 128)  # behind transparent parts: neither drawn black nor drawn white vanishes in it
_QUALITY, _LARGE_QUALITY = 82, 90  # of JPEG: WebP takes a third less room, and five times as long to make
_THREADS = 2  # of which one at most works ahead
_WAIT = 60.0  # seconds that somebody who looks waits for a picture
_YIELD = 3.0  # while a training runs, working ahead rests so many times as long as it works


class Wanted(NamedTuple):
    """A small picture that is to be there."""

    source: Path
    target: Path


def thumb_file(cache: Path, name: str, stamp: Stamp) -> Path:
    """Where the small picture of an image lies, in the folder that remembers; another one once the image changes."""
    told = f"{name}\0{stamp[0]}\0{stamp[1]}".encode("utf-8", "surrogatepass")
    return cache / _FOLDER / f"{hashlib.blake2s(told, digest_size=12).hexdigest()}.jpg"


def small_jpeg(source: Path, side: int = SIDE, quality: int = _QUALITY) -> bytes:
    """The image upright, no side longer than `side` pixels, as JPEG. Raises PlainError for one that cannot be read."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise PlainError(f"{source} cannot be read ({error.strerror}): look whether it is still there.") from error
    out = io.BytesIO()
    load_small(data, source, side, _GREY).image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def large_jpeg(source: Path) -> bytes:
    """The image for a look at it alone. Raises PlainError as `small_jpeg`."""
    return small_jpeg(source, LARGE_SIDE, _LARGE_QUALITY)


def forget_thumbs(cache: Path, kept: Iterable[Path]) -> None:
    """Take away small pictures of images that are gone or changed."""
    names = {path.name for path in kept}
    with suppress(OSError):
        for path in (cache / _FOLDER).iterdir():
            if path.suffix == ".jpg" and path.name not in names:
                path.unlink(missing_ok=True)


class Thumbs:
    """Makes small pictures for all opened data sets. Every method may be called from any thread."""

    def __init__(self, busy: Callable[[], bool] = lambda: False) -> None:
        """`busy` tells whether something runs that must not be slowed down."""
        self._busy = busy
        self._asked: list[Wanted] = []  # the last one first: what somebody scrolled past is not waited for
        self._soon: deque[Wanted] = deque()
        self._later: dict[str, Iterator[Wanted]] = {}
        self._under_way: dict[Path, Future[None]] = {}  # what somebody waits for, or a thread makes
        self._making: set[Path] = set()
        self._ahead = threading.Lock()
        self._news = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def get(self, wanted: Wanted) -> Path:
        """The file of the small picture, made now if it is not there. Raises PlainError where it cannot be made."""
        if wanted.target.is_file():
            return wanted.target
        with self._news:
            future = self._under_way.get(wanted.target)
            if future is None:
                future = self._under_way[wanted.target] = Future()
                self._asked.append(wanted)
            self._wake()
        try:
            future.result(_WAIT)
        except TookLong as error:
            raise PlainError(f"The small picture of {wanted.source.name} takes long to make; ask again.") from error
        return wanted.target

    def soon(self, wanted: Iterable[Wanted]) -> None:
        """Make these next, when nobody waits for one; what was to come next before them comes later."""
        with self._news:
            self._soon = deque(wanted)
            self._wake()

    def later(self, key: str, wanted: Iterable[Wanted]) -> None:
        """Make these when nothing else is to be done; `key` names the data set."""
        with self._news:
            self._later[key] = iter(wanted)
            self._wake()

    def forget(self, key: str) -> None:
        """Make no more for that data set."""
        with self._news:
            self._later.pop(key, None)

    def close(self) -> None:
        """End, after the pictures under way."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _wake(self) -> None:
        if not self._threads:
            self._threads = [threading.Thread(target=self._work, name="thumbs", daemon=True) for _ in range(_THREADS)]
            for thread in self._threads:
                thread.start()
        self._news.notify_all()

    def _work(self) -> None:
        while not self._closed:
            asked = self._next_asked()
            if asked:
                self._make(asked)
            elif self._ahead.acquire(blocking=False):
                try:
                    self._work_ahead()
                finally:
                    self._ahead.release()
            else:
                with self._news:
                    self._news.wait_for(lambda: self._closed or self._asked)

    def _next_asked(self) -> Wanted | None:
        with self._news:
            return self._asked.pop() if self._asked else None

    def _work_ahead(self) -> None:
        """One picture that nobody waits for yet, or a rest until there is something to do."""
        with self._news:
            wanted = self._next_ahead()
            if wanted is None:
                self._news.wait_for(lambda: self._closed or self._asked or self._soon or self._later)
                return
        if wanted.target.is_file():
            return
        begun = time.monotonic()
        self._make(wanted)
        if self._busy():
            with self._news:
                self._news.wait_for(lambda: self._closed or self._asked, (time.monotonic() - begun) * _YIELD)

    def _next_ahead(self) -> Wanted | None:
        if self._soon:
            return self._soon.popleft()
        for key, wanted in list(self._later.items()):
            found = next(wanted, None)
            if found is not None:
                return found
            del self._later[key]
        return None

    def _make(self, wanted: Wanted) -> None:
        target = wanted.target
        with self._news:
            if target in self._making:
                return  # by the other thread, which tells whoever waits
            self._making.add(target)
            future = self._under_way.setdefault(target, Future())
        try:
            if not target.is_file():
                write_whole(target, small_jpeg(wanted.source))
        except PlainError as error:
            future.set_exception(error)
        except OSError as error:
            told = f"{target} cannot be written ({error.strerror or error}); make room on the disk."
            future.set_exception(PlainError(told))
        else:
            future.set_result(None)
        finally:
            future.cancel()  # of no effect but after an error that nobody foresaw: whoever waits is not left waiting
            with self._news:
                self._making.remove(target)
                self._under_way.pop(target, None)
