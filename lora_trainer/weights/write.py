"""safetensors files, written whole or not at all, and the same bytes for the same input.

The header is made here because the safetensors library writes its metadata in the random order of a Rust HashMap. The
tensors lie as the library lays them: larger elements first, equal ones by name, so that the hashes that kohya's
scripts and the WebUI take of the data agree with files of theirs.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lora_trainer.contracts import PlainError, TensorInfo
from lora_trainer.weights.read import ELEMENT_BYTES, dtype_name

if TYPE_CHECKING:
    from torch import Tensor

# The order in which safetensors sorts dtypes, last first (enum Dtype in safetensors/src/tensor.rs).
_DTYPE_ORDER = (
    "U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip
_UNFINISHED = ".part"  # no host lists files of this ending
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of OSError.errno: the disk, a quota, or a limit is full


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` and notes; an older file at `path` is replaced once the new one is whole. Raises PlainError."""
    header = {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    write_stream(path, header, tensors.items(), metadata)


def write_stream(
    path: Path,
    header: Mapping[str, TensorInfo],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Like `write_safetensors` for tensors that come one at a time, in any order, so that only one is held.

    `header` says what will come; ValueError if something else comes, and then nothing is written.
    """
    head, offsets = layout(header, metadata)

    def fill(file: BinaryIO) -> None:
        file.write(head)
        awaited = set(header)
        for name, tensor in tensors:
            found = TensorInfo(dtype_name(tensor.dtype), tuple(tensor.shape))
            if name not in awaited or header[name] != found:
                raise ValueError(f"{name} came as {found}, announced was {header.get(name)}")
            awaited.remove(name)
            file.seek(len(head) + offsets[name])
            file.write(tensor_bytes(tensor))
        if awaited:
            raise ValueError(f"announced but never came: {sorted(awaited)}")

    write_whole(path, fill)


def write_whole(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Let `fill` write a file beside `path` and move it there when it is whole and on the disk.

    Until then an older file at `path` stays as it is, also if the process is killed. Raises PlainError where the
    disk is full or the folder closed to us; whatever `fill` raises passes through.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        _settle(path.parent)
    except OSError as error:
        raise PlainError(why_not_written(path, error)) from error


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what killed writers left in `folder`; only for a folder that nobody else writes to at the moment."""
    leftovers = sorted(folder.glob(f".*{_UNFINISHED}"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


def free_name(path: Path) -> Path:
    """`path`, or where it is taken the first free of name-2, name-3 ... (the ending stays)."""
    path, number = Path(path), 1
    candidate = path
    while candidate.exists() or candidate.is_symlink():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def layout(header: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of the file, up to the tensors, and each tensor's place after them in bytes."""
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offsets: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in sorted(header.items(), key=lambda item: (_DTYPE_ORDER.index(item[1].dtype), item[0])):
        start, end = end, end + prod(shape) * ELEMENT_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        offsets[name] = start
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes, as the format recommends
    return len(text).to_bytes(8, "little") + text, offsets


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order as they stand in a file; shares memory where it can."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _settle(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system lets folders be synced."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def why_not_written(path: Path, error: OSError) -> str:
    """The system's refusal to write there, as a sentence with what to do."""
    if error.errno in NO_ROOM:
        return f"{path} could not be written: the disk is full; what was there before is unharmed, so free some space."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} could not be written: the folder or file is closed to this user; choose another folder."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path} could not be written: a file stands where its folder should be; choose another folder."
    if error.errno == errno.EISDIR:
        return f"{path} could not be written: a folder of that name is in its place; choose another name."
    return f"{path} could not be written ({error.strerror or error}); choose another folder or check the drive."
