"""Pictures on their way into a data set: they gather in a folder of their own, and join it together at the end.

What is gathered stands on the disk and under an unguessable name, so that it outlives the page and the server, and two
senders do not meet. What nobody finishes is swept away after a day.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from lora_trainer.contracts import HostPaths, PlainError
from lora_trainer.data.arriving import KINDS, Left
from lora_trainer.data.images import ENDINGS
from lora_trainer.data.infotext import infotext, prompt_of
from lora_trainer.data.mask_files import FOLDER as MASKS
from lora_trainer.data.taking_in import Taken, take_in
from lora_trainer.data.zipped import unpack
from lora_trainer.jobs.limits import bad_name, check_allowed

__all__ = ["Taken", "Upload", "known_sets", "place_of"]

ZIP = ".zip"
SENT = (*KINDS, ZIP)  # endings of what can be sent
LARGEST = {ZIP: 16 << 30}  # bytes
LARGEST_FILE = 1 << 30  # 100 million pixels of 16 bits and four colours, hardly packed
RESERVE = 256 << 20  # bytes of the disk that are left free: a full one would take the WebUI with it
_STANDS_IN = Path("output")  # where a stand-alone run writes that is given no folder
_ARRIVING = ".arriving"  # hidden, so that no data set ever holds it
_FORGOTTEN = 24 * 3600  # seconds
_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST = 255  # bytes of a file's name, as the common file systems have it
_UNASKED = re.compile(r"thumbs\.db|desktop\.ini|__MACOSX", re.IGNORECASE)  # what systems put into folders by themselves


def place_of(paths: HostPaths) -> Path:
    """The folder that holds the data sets that were sent."""
    return (paths.runs or paths.loras or _STANDS_IN) / "data"


def known_sets(paths: HostPaths, others: Iterable[str]) -> list[Path]:
    """Data sets that pictures can be sent to, the one changed last first: those sent before, and `others` that are
    there and allowed."""
    place = place_of(paths)
    found = [path for path in place.iterdir() if not path.name.startswith(".")] if place.is_dir() else []
    for other in others:
        try:
            check_allowed(other, paths, "folder")
        except PlainError:
            continue
        found.append(Path(other).expanduser())
    folders = {path.resolve(): path for path in found if path.is_dir()}
    return sorted(folders.values(), key=lambda path: path.stat().st_mtime, reverse=True)


class Upload:
    """One sending, from the first file to the last."""

    def __init__(self, id: str, paths: HostPaths) -> None:
        """Raises KeyError where there is no such sending, or none any more."""
        self.id = id
        self._here = place_of(paths) / _ARRIVING / id
        if not _ID.fullmatch(id) or not self._here.is_dir():
            raise KeyError(id)
        self._files = self._here / "files"

    @classmethod
    def begin(cls, paths: HostPaths, *, folder: Path | None = None, name: str = "") -> Upload:
        """A sending into a data set's `folder`, or into a new one called `name`. Raises PlainError.

        Whether the folder may be named is the caller's to judge.
        """
        if folder is not None:
            _check_folder(folder)
        elif name and (fault := bad_name(name)):
            raise PlainError(f"The name of the data set {fault}.")
        place = place_of(paths) / _ARRIVING
        order = {"folder": str(folder) if folder else None, "name": name}
        id = secrets.token_hex(16)
        try:
            (place / id / "files").mkdir(parents=True)
            (place / id / "order.json").write_text(json.dumps(order), encoding="utf-8")
            _sweep(place)
        except OSError as error:
            raise PlainError(f"{place} cannot be written ({error.strerror}); change its permissions.") from error
        return cls(id, paths)

    @staticmethod
    def most(name: str) -> int:
        """The most bytes that a file of this name may have."""
        return LARGEST.get(PurePosixPath(name).suffix.lower(), LARGEST_FILE)

    def place_for(self, name: str, size: int) -> Path:
        """Where to write a file of so many bytes, that is called so in the folder that is sent. Raises PlainError."""
        relative = _relative(name)
        ending = PurePosixPath(relative).suffix.lower()
        if ending not in SENT:
            raise PlainError(f"{name} is no picture, caption, table or zip: send files that end in {', '.join(SENT)}.")
        if size > self.most(name):
            told = f"{name} has {size / 1e9:.1f} GB, more than the {self.most(name) / 1e9:.1f} GB that are taken"
            raise PlainError(f"{told}: scale the picture down, or send it in parts.")
        if size > self.room():
            raise PlainError(
                f"{name} has {size / 1e6:.0f} MB, and the server's disk has room for "
                f"{max(self.room(), 0) / 1e6:.0f} MB: make room there."
            )
        path = self._files / relative
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PlainError(f"{name} cannot be kept ({error.strerror}): rename it.") from error
        return path

    def room(self) -> int:
        """Bytes that may still come."""
        return shutil.disk_usage(self._here).free - RESERVE

    def finish(self, *, prompts: bool = False, infotexts: Mapping[str, str] | None = None) -> Taken:
        """Put everything into the data set; with `prompts` each picture gets the one it was drawn with as its caption.

        `infotexts` tell it, by name, of pictures in which none is written. Raises PlainError, and what was sent is kept
        then, to be finished later.
        """
        order = json.loads((self._here / "order.json").read_text(encoding="utf-8"))
        left = [Left(*one) for archive in self._archives() for one in self._unpacked(archive)]
        folder = Path(order["folder"]) if order["folder"] else self._new(order["name"])
        is_new = not folder.exists()
        if is_new:
            self._drop_common_folder(folder)
        texts = self._prompts(infotexts or {}) if prompts else {}
        try:
            taken = take_in(self._files, folder, texts)
        finally:
            if is_new and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        taken.left[:0] = left
        self.cancel()
        return taken

    def cancel(self) -> None:
        """Forget what was sent."""
        shutil.rmtree(self._here, ignore_errors=True)

    def _archives(self) -> list[Path]:
        return sorted(path for path in self._files.rglob("*") if path.suffix.lower() == ZIP)

    def _unpacked(self, archive: Path) -> Iterator[tuple[str, str]]:
        beside = archive.parent.relative_to(self._files)

        def place_for(name: str) -> Path | None:
            if _is_unasked(name):
                return None
            path = self.place_for((beside / name).as_posix(), 0)
            if path.suffix.lower() == ZIP:
                raise PlainError(f"{name} is a zip in a zip: unpack it first.")
            if path.exists():
                raise PlainError(f"{name} came twice: send the archive by itself.")
            return path

        try:
            yield from unpack(archive, place_for, self.room())
        except PlainError as error:
            yield archive.name, str(error)
        archive.unlink()

    def _new(self, name: str) -> Path:
        """A folder that is not there yet."""
        place = self._here.parent.parent
        wanted = name or time.strftime("dropped_%Y-%m-%d_%H%M%S")
        return free(place / wanted)

    def _drop_common_folder(self, folder: Path) -> None:
        """A folder that was sent as a whole becomes the data set itself, not a folder in it; but "10_cat" says how
        often its pictures are shown, "mask" that they are masks, and both stay."""
        inside = list(self._files.iterdir())
        telling = rf"[1-9][0-9]*_|{MASKS}\Z"
        if len(inside) == 1 and inside[0].is_dir() and not re.match(telling, inside[0].name):
            moved = self._here / "inside"
            inside[0].rename(moved)
            self._files.rmdir()
            moved.rename(self._files)

    def _prompts(self, infotexts: Mapping[str, str]) -> dict[str, str]:
        names = [path.relative_to(self._files).as_posix() for path in self._files.rglob("*")
                 if path.suffix.lower() in ENDINGS]  # fmt: skip
        return {name: prompt_of(infotext(self._files / name) or infotexts.get(name, "")) for name in names}


def free(path: Path) -> Path:
    """The path itself, or with the first number that no file has."""
    number = 2
    found = path
    while found.exists():
        found = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return found


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise PlainError(f"There is no folder {folder} any more; choose another data set.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PlainError(f"{folder} is closed to writing: change its permissions, or choose another data set.")


def _relative(name: str) -> str:
    """The name within the folder that is sent, with "/". Raises PlainError for one that leads elsewhere."""
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if not parts or not all(parts) or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
        raise PlainError(f"{name!r} is no name of a file within a folder: rename it.")
    for part in parts:
        if re.search(r"[\x00-\x1f\x7f]", part):
            raise PlainError(f"{name!r} holds letters that cannot be shown: rename it.")
        if len(os.fsencode(part)) > _LONGEST:
            told = f"{part[:40]}… has {len(os.fsencode(part))} bytes, and file systems take {_LONGEST} of them"
            raise PlainError(f"{told}: shorten the name.")
        if part.startswith("."):
            raise PlainError(f"{name} is hidden, and hidden files are no part of a data set: rename it.")
        if os.name == "nt" and (fault := bad_name(part)):
            raise PlainError(f"{name} {fault}.")
    return "/".join(parts)


def _is_unasked(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return any(_UNASKED.fullmatch(part) or (part.startswith(".") and part not in (".", "..")) for part in parts)


def _sweep(place: Path) -> None:
    """Take away what nobody finished."""
    for old in place.iterdir():
        if time.time() - max(old.stat().st_mtime, (old / "files").stat().st_mtime) > _FORGOTTEN:
            shutil.rmtree(old, ignore_errors=True)
