"""What is remembered of jobs when the server is gone: a small file for each job, and its events beside it."""

from __future__ import annotations

import errno
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lora_trainer.contracts import PlainError
from lora_trainer.jobs.events import Numbered, event_of, plain

_VERSION = 1
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")  # day, second, chance: sorts by time, and is harmless as a file name

_CLAIM = "server.lock"

_log = logging.getLogger(__name__)


class Records:
    """The folder of job files. A disk that refuses costs the memory of a job, never the job: it is told in the log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._claim: BinaryIO | None = None

    def claim(self) -> bool:
        """Whether no other process has these records: then what is unfinished in them was cut off.

        The system gives the claim back when the process ends, however it ends. Makes no folder.
        """
        if self._claim is not None or not self.folder.is_dir():
            return True
        try:
            self._claim = (self.folder / _CLAIM).open("ab")
        except OSError as error:
            _log.warning("Jobs will be forgotten when the server ends, because %s cannot be written: %s",
                         self.folder, error)  # fmt: skip
            return True
        return _locked(self._claim)

    def give_back(self) -> None:
        """End the claim."""
        if self._claim:
            self._claim.close()
            self._claim = None

    def write(self, id: str, values: Callable[[], Mapping[str, Any]], events: Iterable[Numbered] | None = None) -> None:
        """Replace the record; `values` is asked under the lock, so that the newest always stands last."""
        with self._lock:
            self._put(self.folder / f"{id}.json", {"version": _VERSION, **values()})
            if events is not None:
                rows = [{"n": item.n, "at": item.at, **plain(item.event)} for item in events]
                self._put(self.folder / f"{id}.events.json", rows)

    def read_all(self) -> dict[str, dict[str, Any]]:
        """Every readable record by id, oldest first."""
        found: dict[str, dict[str, Any]] = {}
        names = sorted(path.stem for path in self.folder.glob("*.json")) if self.folder.is_dir() else []
        for id in filter(_ID.fullmatch, names):
            values = _read(self.folder / f"{id}.json")
            if isinstance(values, dict) and values.get("version") == _VERSION:
                found[id] = values
        return found

    def events(self, id: str) -> list[Numbered]:
        """The events as far as they were written."""
        rows = _read(self.folder / f"{id}.events.json")
        try:
            return [Numbered(int(row["n"]), float(row["at"]), event_of(row)) for row in rows or []]
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("The events of job %s cannot be read (%r) and are left out.", id, error)
            return []

    def remember(self, name: str, values: Any) -> None:
        """Write a file of another kind into the folder."""
        with self._lock:
            self._put(self.folder / name, values)

    def recall(self, name: str) -> Any:
        """What `remember` wrote, or None."""
        return _read(self.folder / name)

    def forget(self, id: str) -> None:
        """Remove a job's files."""
        with self._lock:
            for path in (self.folder / f"{id}.json", self.folder / f"{id}.events.json"):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    _log.warning("The record %s could not be removed: %s", path, error)

    def _put(self, path: Path, values: Any) -> None:
        from lora_trainer.weights.write import write_whole  # imports torch

        data = json.dumps(values, allow_nan=False).encode("ascii")  # escaped: file names may hold what UTF-8 refuses

        def fill(file: BinaryIO) -> None:
            file.write(data)

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim()
            write_whole(path, fill)
        except (OSError, PlainError) as error:
            _log.warning("The record %s could not be written: %s", path, error)


def _locked(file: BinaryIO) -> bool:
    """Take the file for this process alone; False if another one has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks (some network drives) cannot tell; the usual case is then assumed.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("The record %s cannot be read (%s) and is passed over.", path, error)
        return None
