"""What kind of file stands at a path, told from its first bytes; the extension is only a hope."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Literal

from lora_trainer.contracts import PlainError

Kind = Literal["safetensors", "pickle", "zipped pickle"]

MAX_HEADER_BYTES = 100_000_000  # the safetensors library refuses longer headers (safetensors/src/tensor.rs)
_LENGTH_BYTES = 8  # a safetensors file starts with its header's length, little-endian
WANTED = "choose a checkpoint in .safetensors (or .ckpt, .pt) format"

# Magic numbers and what they stand for. GGUF: ggml's docs/gguf.md; the other four are its forerunners, written as
# little-endian uint32 and so reversed on disk.
_LLAMA_MAGICS = {b"GGUF": "GGUF", b"lmgg": "GGML", b"fmgg": "GGML", b"tjgg": "GGML", b"algg": "GGML"}
_OTHER_MAGICS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"RIFF": "a WebP picture or a sound file",
    b"GIF8": "a GIF picture",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to",
}


def kind_of(path: Path) -> Kind:
    """The format of a checkpoint file. Raises PlainError, saying what was found instead, for everything else."""
    size, start = _first_bytes(path)
    if size == 0:
        raise PlainError(f"{path} is empty (0 bytes); download or copy it again.")
    for magic, name in _LLAMA_MAGICS.items():
        if start.startswith(magic):
            raise PlainError(
                f"{path} is a {name} file for llama.cpp-style programs; image models are needed as .safetensors."
            )
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    # Before the pickles, since one header length in two thousand begins with their two bytes.
    if _looks_like_safetensors(start):
        return "safetensors"
    # Protocol 2 to 5 pickles; torch.save before version 1.6 wrote the pickles one after another.
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    raise PlainError(f"{path} is not a checkpoint: it is {_describe(start)}; {WANTED}.")


def _first_bytes(path: Path) -> tuple[int, bytes]:
    try:
        if path.is_dir():
            raise PlainError(_about_folder(path))
        with path.open("rb") as file:
            return path.stat().st_size, file.read(512)
    except (FileNotFoundError, NotADirectoryError):
        raise PlainError(f"There is no file {path}; check the path and its spelling.") from None
    except PermissionError:
        raise PlainError(f"{path} may not be read by this user; change its permissions.") from None
    except OSError as error:
        raise PlainError(f"{path} cannot be read ({error.strerror or error}); check the drive it is on.") from error


def _about_folder(path: Path) -> str:
    if (path / "model_index.json").is_file():
        return f"{path} is a diffusers folder where a single file was asked for; {WANTED}."
    return f"{path} is a folder without model_index.json, so it is no diffusers model; {WANTED}."


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        # The list of contents stands at the end of a zip, which a broken download lacks.
        raise PlainError(f"{path} is cut off or damaged at its end; download or copy it again.") from None
    except OSError as error:
        raise PlainError(f"{path} cannot be read ({error.strerror or error}); check the drive it is on.") from error
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "zipped pickle"
    raise PlainError(f"{path} is not a checkpoint: it is a zip archive; unpack it, or {WANTED}.")


def _looks_like_safetensors(start: bytes) -> bool:
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    return start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and length <= MAX_HEADER_BYTES


def _describe(start: bytes) -> str:
    for magic, name in _OTHER_MAGICS.items():
        if start.startswith(magic):
            return name
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (often a login page saved in place of the download)"
    try:
        if start.decode("utf-8", errors="strict").isprintable() or b"\n" in start:
            return "text"
    except UnicodeDecodeError:
        pass
    return "of an unknown format"
