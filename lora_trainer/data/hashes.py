"""Digests of files, remembered between runs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

# A file changed twice within the clock tick of its file system keeps size and time (FAT counts in 2 seconds), so a
# digest is remembered only when the file had been left alone that long.
SETTLED = 2.0  # seconds

CACHE_FOLDER = Path(".cache") / "lora_trainer"  # inside the data set's folder; hidden, so that a scan passes it by


class FileDigests:
    """SHA-256 of files' bytes; a file whose size and time of change are as remembered is not read again."""

    def __init__(self, index: Path) -> None:
        """`index` is the JSON file that remembers; one that is missing or unreadable only costs time."""
        self._index = index
        self._known: dict[str, tuple[int, int, str]] = {}  # absolute path: size, nanoseconds, digest
        try:
            rows = json.loads(index.read_text("utf-8"))
            self._known = {str(path): (int(row[0]), int(row[1]), str(row[2])) for path, row in rows.items()}
        except (OSError, ValueError, AttributeError, TypeError, IndexError, KeyError):
            self._known = {}

    def of(self, path: Path) -> str:
        """Hex digest of the file's content. Raises OSError. May be called from several threads."""
        place = str(path.absolute())
        stat = path.stat()
        known = self._known.get(place)
        if known and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2]
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        if time.time() - stat.st_mtime > SETTLED:
            self._known[place] = (stat.st_size, stat.st_mtime_ns, digest.hexdigest())
        return digest.hexdigest()

    def save(self) -> None:
        """Write the index for the next run. Raises OSError."""
        write_whole(self._index, json.dumps(self._known).encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name and move it into place, so that no one ever reads half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
