"""Checkpoint files as mappings of tensors: the header at once, a tensor when it is asked for.

A safetensors file is 8 bytes of header length N (little-endian), N bytes of JSON, then the tensors' bytes; offsets
count from the end of the JSON (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_trainer.contracts import PlainError, TensorInfo
from lora_trainer.weights.sniff import MAX_HEADER_BYTES, kind_of

if TYPE_CHECKING:  # reading a header must not cost a torch import
    from torch import Tensor

# Bytes of one element; formats that pack several elements into a byte are absent and their sizes not checked.
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


class _Head(NamedTuple):
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


class Checkpoint(Mapping[str, "Tensor"]):
    """The tensors of one file. Each is read when asked for; close it, or use it in a `with`, to let go of the file.

    Tensors lie in memory mapped from the file, copied on write: changing one never changes the file, and a tensor
    taken stays valid after closing.
    """

    def __init__(self, path: Path, header: Mapping[str, TensorInfo], metadata: dict[str, str], source: Any) -> None:
        """`source` is an open `safe_open`, or the tensors themselves."""
        self.path = path
        self.header = header
        self.metadata = metadata
        self._source = source

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.header:
            raise KeyError(key)
        if self._source is None:
            raise ValueError(f"{self.path} was closed before {key} was read")
        return self._source[key] if isinstance(self._source, dict) else self._source.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def __len__(self) -> int:
        return len(self.header)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; the names stay readable."""
        source, self._source = self._source, None
        if source is not None and not isinstance(source, dict):
            source.__exit__(None, None, None)


def read_header(path: Path | str) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes of a file's tensors; milliseconds for safetensors. Raises PlainError."""
    path = Path(path)
    if kind_of(path) == "safetensors":
        return _parse_head(path).tensors
    with _open_pickle(path) as checkpoint:
        return dict(checkpoint.header)


def read_metadata(path: Path | str) -> dict[str, str]:
    """The notes in a safetensors header ("ss_...", "modelspec. ..."); empty for other formats. Raises PlainError."""
    path = Path(path)
    return _parse_head(path).metadata if kind_of(path) == "safetensors" else {}


def open_checkpoint(path: Path | str) -> Checkpoint:
    """A file's tensors, read when asked for. Raises PlainError for anything but a whole checkpoint."""
    path = Path(path)
    if kind_of(path) != "safetensors":
        return _open_pickle(path)
    from safetensors import SafetensorError, safe_open

    head = _parse_head(path)
    try:
        # Not safetensors.torch.load_file: Forge wraps it and renames a file that fails to load.
        source = safe_open(str(path), framework="pt", device="cpu")
    except SafetensorError as error:
        raise PlainError(f"{path} is damaged ({error}); download or copy it again.") from error
    return Checkpoint(path, head.tensors, head.metadata, source)


# --- safetensors -----------------------------------------------------------------------------------------------------


def _parse_head(path: Path) -> _Head:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(min(length, MAX_HEADER_BYTES))
    if len(raw) < length:
        raise PlainError(
            f"{path} is cut off: its header should have {length:,} bytes, but only {len(raw):,} are there; "
            "download or copy it again."
        )
    try:
        content = json.loads(raw)
        metadata = {str(key): str(value) for key, value in content.pop("__metadata__", {}).items()}
        tensors = {name: TensorInfo(str(e["dtype"]), tuple(map(int, e["shape"]))) for name, e in content.items()}
        spans = {name: (int(e["data_offsets"][0]), int(e["data_offsets"][1])) for name, e in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise PlainError(f"{path} is damaged: its header cannot be read; download or copy it again.") from error
    _check_spans(path, tensors, spans, size - 8 - length)
    return _Head(tensors, metadata)


def _check_spans(
    path: Path, tensors: Mapping[str, TensorInfo], spans: Mapping[str, tuple[int, int]], found: int
) -> None:
    for name, (dtype, shape) in tensors.items():
        start, end = spans[name]
        bits_known = dtype in ELEMENT_BYTES
        if start < 0 or end < start or (bits_known and end - start != prod(shape) * ELEMENT_BYTES[dtype]):
            raise PlainError(
                f"{path} is damaged: the size of the tensor {name} contradicts itself; download or copy it again."
            )
    promised = max((end for _, end in spans.values()), default=0)
    if promised != found:
        what = "cut off" if found < promised else "damaged"
        raise PlainError(
            f"{path} is {what}: its header promises {promised:,} bytes of weights, but {found:,} are there; "
            "download or copy it again."
        )
    if not tensors:
        raise PlainError(f"{path} holds no tensors at all; choose another file.")


# --- pickles ---------------------------------------------------------------------------------------------------------

# How torch names what it refuses: "Unsupported global: GLOBAL posix.system was ..." (newer), "Unsupported class
# posix.system" and "Unsupported operand 130" (older).
_REFUSAL = re.compile(r"(?:Unsupported class|Unsupported operand|GLOBAL) [`'\"]?([\w.]+)")
# What torch.load lets through, by trial, from files whose bytes were cut or changed.
_BROKEN_PICKLE = (
    RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, AssertionError, struct.error,
)  # fmt: skip


def _open_pickle(path: Path) -> Checkpoint:
    import torch

    named = _state_dict(path, _load_pickle(path))
    tensors: dict[str, Tensor] = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise PlainError(f"{path} holds no tensors; choose a checkpoint of a model.")
    header = {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    return Checkpoint(path, header, {}, tensors)


def _load_pickle(path: Path) -> object:
    """What the pickle holds, if it is data alone; code in it is refused before it could run."""
    import pickle

    import torch

    try:
        try:
            # A Path, not a str: Forge wraps torch.load and renames files given as str when they fail.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind_of(path) == "zipped pickle")
        except ValueError:  # older torch maps only what is named by a str; then it is read as a whole
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked_for = _REFUSAL.search(str(error))
        if asked_for is None:
            raise PlainError(_damaged(path)) from error
        raise PlainError(
            f"{path} asks to run code besides holding weights ({asked_for.group(1)}) and is not opened; "
            "use the .safetensors version of this model, or convert the file where you trust it."
        ) from error
    except _BROKEN_PICKLE as error:
        raise PlainError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return f"{path} is damaged and cannot be read; download or copy it again."


def _state_dict(path: Path, content: object) -> Mapping[str, object]:
    """Training programs put the weights below "state_dict", beside their own counters."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise PlainError(f"{path} holds no named tensors; choose a checkpoint of a model.")
    return content


# --- dtypes ----------------------------------------------------------------------------------------------------------

_TORCH_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32",
    "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def dtype_name(dtype: Any) -> str:
    """A torch dtype as safetensors spells it: torch.float16 is "F16". ValueError for what safetensors lacks."""
    name = str(dtype).removeprefix("torch.")
    if name not in _TORCH_NAMES:
        raise ValueError(f"safetensors has no name for {dtype}")
    return _TORCH_NAMES[name]
