"""The hashes by which kohya's scripts and the WebUI know LoRA files and checkpoints.

Definitions: kohya-ss/sd-scripts, library/train_util.py (`precalculate_safetensors_hashes`, `model_hash`,
`calculate_sha256`) and AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/hashes.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.contracts import TensorInfo
from lora_trainer.weights.read import dtype_name
from lora_trainer.weights.write import layout, tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

# The legacy hash looks at this window of the file alone.
_WINDOW = slice(0x100000, 0x110000)
_LEGACY_DIGITS = 8
_BLOCK = 1 << 20  # bytes read at a time


def lora_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`sshs_model_hash` and `sshs_legacy_hash`, to be written into the metadata of the file itself.

    They are those of the file that holds these tensors and only the "ss_" notes, so that other notes may be edited
    later. The first is the SHA-256 of the tensors' bytes; the WebUI's Lora page takes it from the notes or computes
    the same (`data_hash`).
    """
    header = {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    head, offsets = layout(header, kept)
    data, window = hashlib.sha256(), hashlib.sha256(head[_WINDOW])
    place = len(head)
    for name in sorted(offsets, key=lambda n: (offsets[n], n)):
        part = tensor_bytes(tensors[name])
        data.update(part)
        window.update(part[max(_WINDOW.start - place, 0) : max(_WINDOW.stop - place, 0)])
        place += len(part)
    return {"sshs_model_hash": data.hexdigest(), "sshs_legacy_hash": window.hexdigest()[:_LEGACY_DIGITS]}


def data_hash(path: Path) -> str:
    """SHA-256 of the tensors' bytes of a safetensors file: its `sshs_model_hash`, whatever its notes say."""
    with path.open("rb") as file:
        return _sha256_from(path, 8 + int.from_bytes(file.read(8), "little"))


def file_hash(path: Path) -> str:
    """SHA-256 of the whole file: kohya's `ss_new_sd_model_hash`, and the WebUI's hash of a checkpoint (first 10)."""
    return _sha256_from(path, 0)


def legacy_file_hash(path: Path) -> str:
    """Eight hex digits of the bytes 1 MiB into the file: kohya's `ss_sd_model_hash`, the WebUI's hash before 2023."""
    with path.open("rb") as file:
        file.seek(_WINDOW.start)
        return hashlib.sha256(file.read(_WINDOW.stop - _WINDOW.start)).hexdigest()[:_LEGACY_DIGITS]


def _sha256_from(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
