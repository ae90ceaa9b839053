"""Captions into files: a table, or a text file beside each image. Nothing that was there is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from lora_trainer.contracts import PlainError
from lora_trainer.data.caption_sources import rows_by_image
from lora_trainer.data.captions import (
    FILE_COLUMNS,
    TEXT_COLUMNS,
    columns_of,
    file_name,
    fold,
    is_text,
    one_line,
    read_jsonl,
    read_text,
    spelled,
)
from lora_trainer.data.listing import Stamp

HEADER = ["filename", "prompt"]
PREVIOUS = ".bak"
_LONGEST = 255  # bytes of a file's name, as the common file systems have it


def refused(name: str, ending: str = "") -> str:
    """Why the caption of an image of that name cannot be kept in a table, or, with an `ending`, in a text file beside
    it; "" where it can."""
    if ending:
        longest = os.fsencode(PurePosixPath(name).with_suffix(ending).name + PREVIOUS)
        if len(longest) > _LONGEST:
            told = f"The name {name[:60]}… is too long for a {ending} file beside the image"
            return f"{told}: shorten it, or keep captions in a table."
        return ""
    if file_name(name) != name or not is_text(name):
        return (
            f"A table cannot name {name!r}, for its spaces at the end, its backslash or its letters that are none: "
            "rename the file, or keep captions in text files."
        )
    return ""


def _check(name: str, ending: str = "") -> None:
    """Told at the first word: with the others it would be lost when they are saved."""
    if reason := refused(name, ending):
        raise PlainError(reason)


class CaptionFiles(Protocol):
    """Where captions go."""

    def put(self, name: str, caption: str) -> None:
        """The caption of the image of that name, relative to the data set's folder. Raises PlainError."""
        ...

    def save(self) -> object:
        """What was put is on the disk afterwards. Raises PlainError."""
        ...


class Table:
    """A table of captions; rows of other files, further columns, encoding mark and line ends stay as they are."""

    def __init__(self, path: Path, folder: Path, images: Iterable[str], *, keep: bool = True) -> None:
        """`images` are the names of all images in the data set's folder; `keep` the file that is there as .bak when it
        is replaced. Raises PlainError for a file that is there and is no such table."""
        self.path = path
        self._rows: list[list[str]] = [list(HEADER)]
        self._mark, self._line_end = "", "\n"
        if path.exists():
            self._read()
        self._file, self._text = columns_of(path, self._rows[0])
        names = {file_name(row[self._file]): row for row in self._rows[1:] if len(row) > self._file}
        known = rows_by_image(names, path.parent, folder, {spelled(image) for image in images})
        self._by_image = {image: names[name] for image, name in known.items()}
        self._changed = False
        self._keeps = keep  # at the first writing only: the table from before the run is the one to go back to

    def _read(self) -> None:
        text = read_text(self.path).text
        if self.path.read_bytes().startswith(b"\xef\xbb\xbf"):
            self._mark = "\ufeff"
        self._line_end = "\r\n" if "\r\n" in text else "\n"
        self._rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row] or [[]]
        for row in self._rows[1:]:
            fold(row, len(self._rows[0]))

    def put(self, name: str, caption: str) -> None:
        """Set the caption in the image's row, or add a row."""
        row = self._by_image.get(spelled(name))
        if row is None:
            _check(name)
            row = self._by_image[spelled(name)] = [""] * len(self._rows[0])
            row[self._file] = name
            self._rows.append(row)
        row += [""] * (self._text + 1 - len(row))
        self._changed |= row[self._text] != one_line(caption)
        row[self._text] = one_line(caption)

    def drop(self, name: str) -> None:
        """Take the image's row out, if it has one."""
        row = self._by_image.pop(spelled(name), None)
        if row is not None:
            self._rows = [other for other in self._rows if other is not row]
            self._changed = True

    def drop_doubles(self) -> None:
        """Take out every row but the last of those for one file, which is the one that counts."""
        named = {number: file_name(row[self._file]) for number, row in enumerate(self._rows) if len(row) > self._file}
        last = {name: number for number, name in named.items()}
        kept = [row for number, row in enumerate(self._rows) if number not in named or last[named[number]] == number]
        self._changed |= len(kept) < len(self._rows)
        self._rows = kept

    def save(self) -> Stamp | None:
        """Write the table, if a caption changed, and tell its new stamp; the version from before the first writing is
        kept as .bak."""
        if not self._changed:
            return None
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=self._line_end).writerows(self._rows)
        stamp = replace_text(self.path, self._mark + text.getvalue(), keep=self._keeps)
        self._changed, self._keeps = False, False
        return stamp


class JsonLines:
    """A table of captions with one JSON object a line; other lines, keys and their order stay as they are."""

    def __init__(self, path: Path, folder: Path, images: Iterable[str], *, keep: bool = True) -> None:
        """As `Table`. Raises PlainError for a file that is there and is no such table."""
        self.path = path
        self._keeps = keep
        self._changed = False
        read_jsonl(path)  # refuses lines that are no such objects, by their number
        self._lines = read_text(path).text.splitlines()
        rows = {
            file_name(_cell(line, FILE_COLUMNS)[1]): number for number, line in enumerate(self._lines) if line.strip()
        }
        known = rows_by_image(rows, path.parent, folder, {spelled(image) for image in images})
        self._by_image = {image: rows[name] for image, name in known.items()}

    def put(self, name: str, caption: str) -> None:
        """Set the caption in the image's line, or add a line."""
        number = self._by_image.get(spelled(name))
        if number is None:
            _check(name)
            number = self._by_image[spelled(name)] = len(self._lines)
            self._lines.append(
                json.dumps({FILE_COLUMNS[1]: name, TEXT_COLUMNS[1]: one_line(caption)}, ensure_ascii=False)
            )
            self._changed = True
            return
        key, before = _cell(self._lines[number], TEXT_COLUMNS)
        if before != one_line(caption):
            values = json.loads(self._lines[number]) | {key: one_line(caption)}
            self._lines[number] = json.dumps(values, ensure_ascii=False)
            self._changed = True

    def drop(self, name: str) -> None:
        """Empty the image's line, if it has one."""
        number = self._by_image.pop(spelled(name), None)
        if number is not None:
            self._lines[number] = ""
            self._changed = True

    def save(self) -> Stamp | None:
        """As `Table.save`."""
        if not self._changed:
            return None
        stamp = replace_text(self.path, "\n".join([*self._lines, ""]), keep=self._keeps)
        self._changed, self._keeps = False, False
        return stamp


def _cell(line: str, names: Sequence[str]) -> tuple[str, str]:
    """The first key of an object in a line that means one of these, as it is spelled, with its value."""
    keys = {str(key).strip().lower(): (key, value) for key, value in json.loads(line).items()}
    return next(keys[name] for name in names if name in keys)


class Sidecars:
    """A text file beside each image."""

    def __init__(self, folder: Path, ending: str) -> None:
        """`ending` is ".txt" or ".caption"."""
        self._folder = folder
        self._ending = ending

    def path_of(self, name: str) -> Path:
        """Where an image's caption goes."""
        return self._folder / PurePosixPath(name).with_suffix(self._ending)

    def put(self, name: str, caption: str) -> None:
        """Write it at once; what was there is kept as .bak."""
        _check(name, self._ending)
        replace_text(self.path_of(name), one_line(caption) + "\n", keep=True)

    def save(self) -> None:
        """Everything is on the disk already."""


def replace_text(path: Path, text: str, *, keep: bool) -> Stamp:
    """Write a UTF-8 file under another name and move it into place, so that no one ever reads half of it.

    With `keep` the file that was there becomes `<name>.bak`. A link stays one, and what it points at is replaced.
    Returns the stamp of what was written: taken before it is moved, so that it is not that of another's version.
    Raises PlainError.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PlainError(
            f"{path} cannot hold {error.object[error.start : error.end]!r}, which is half a letter: correct the "
            "caption, or the name of the file."
        ) from error
    try:
        path = path.resolve() if path.is_symlink() else path
        unfinished = _unfinished(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(data)
            about = unfinished.stat()
            if path.exists():
                shutil.copymode(path, unfinished)
                if keep:
                    _keep(path)
            unfinished.replace(path)
            return about.st_size, about.st_mtime_ns
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise PlainError(
            f"{path} cannot be written ({error.strerror or error}); make room or change the folder's permissions. What "
            "was there before is whole."
        ) from error


def _unfinished(path: Path) -> Path:
    """Hidden, and short: a name may be as long already as the file system takes."""
    return path.with_name(f".{secrets.token_hex(8)}")


def _keep(path: Path) -> None:
    """A copy, so that there is a file of that name at every moment."""
    copy = _unfinished(path)
    try:
        shutil.copy2(path, copy)
        copy.replace(path.with_name(path.name + PREVIOUS))
    finally:
        copy.unlink(missing_ok=True)
