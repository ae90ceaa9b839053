"""A zip archive of pictures unpacked, whoever packed it: no name leads out, and it may not fill the disk."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_trainer.contracts import PlainError
from lora_trainer.data.captions import legacy_encoding

_PIECE = 1 << 20  # bytes
_UTF8 = 0x800  # of the general purpose flags: the name is UTF-8; APPNOTE.TXT 6.3.9, section 4.4.4
_LOCKED = 0x1
MOST_FILES = 100_000


def unpack(archive: Path, place_for: Callable[[str], Path | None], room: int) -> Iterator[tuple[str, str]]:
    """Write the archive's files to where `place_for` puts their names; yields (name, reason) of each that is not.

    `place_for` returns None for a file that is passed by without a word, or raises PlainError. Raises PlainError for an
    archive that cannot be read, or that holds more than `room` bytes.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            files = [one for one in packed.infolist() if not one.is_dir()]
            _check(archive, files, room)
            for one in files:
                name = _name(one)
                try:
                    path = place_for(name)
                    if path is not None:
                        _write(packed, one, path)
                except PlainError as error:
                    yield name, str(error)
                except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
                    yield name, f"{name} is damaged in {archive.name} ({error}): pack it again."
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError) as error:
        raise PlainError(f"{archive.name} is no zip archive that can be read ({error}): pack it again.") from error


def _check(archive: Path, files: list[zipfile.ZipInfo], room: int) -> None:
    if len(files) > MOST_FILES:
        raise PlainError(f"{archive.name} holds {len(files):,} files; pack at most {MOST_FILES:,} into one archive.")
    size = sum(one.file_size for one in files)
    if size > room:
        raise PlainError(
            f"{archive.name} holds {size / 1e9:.1f} GB unpacked, and the server's disk has room for "
            f"{max(room, 0) / 1e9:.1f} GB: make room, or send fewer pictures."
        )
    if any(one.flag_bits & _LOCKED for one in files):
        raise PlainError(f"{archive.name} is locked with a password: unpack it first, and send the pictures.")


def _name(one: zipfile.ZipInfo) -> str:
    """As it was meant: older programs write names in the letters of their own system, which are read as cp437 then."""
    if one.flag_bits & _UTF8:
        return one.filename
    raw = one.filename.encode("cp437", errors="surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode(legacy_encoding(raw), errors="replace")


def _write(packed: zipfile.ZipFile, one: zipfile.ZipInfo, path: Path) -> None:
    """Never more bytes than the archive's list says, whatever it holds."""
    left = one.file_size
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with packed.open(one) as source, path.open("xb") as target:
            while piece := source.read(min(_PIECE, left + 1)):
                left -= len(piece)
                if left < 0:
                    raise zipfile.BadZipFile("it is larger than its list says")
                target.write(piece)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError):
        path.unlink(missing_ok=True)
        raise
