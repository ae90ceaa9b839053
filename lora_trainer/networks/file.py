"""LoRA files: written whole, finite and the same for the same input; read without guessing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lora_trainer.contracts import NetworkState, PlainError
from lora_trainer.networks.dialects import KohyaName, to_kohya
from lora_trainer.weights.hashes import lora_hashes
from lora_trainer.weights.read import open_checkpoint
from lora_trainer.weights.write import write_safetensors

Precision = Literal["fp16", "bf16", "fp32"]
DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def write_lora(
    path: Path, state: NetworkState, *, kohya_name: KohyaName, metadata: Mapping[str, str], precision: Precision
) -> None:
    """Write a LoRA that the WebUIs, kohya's scripts and diffusers read, with the hashes they know it by.

    Raises PlainError, writing nothing, if a value is not a finite number in `precision`, or if the disk refuses.
    """
    write_tensors(path, to_kohya(state, kohya_name), metadata=metadata, precision=precision)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str], precision: Precision
) -> None:
    """Like `write_lora` for tensors that have their names already."""
    cast = {name: _cast(name, tensor, precision, path) for name, tensor in tensors.items()}
    write_safetensors(path, cast, {**metadata, **lora_hashes(cast, metadata)})


def read_lora(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and notes of a LoRA file as they stand. Raises PlainError if it is not a whole file of tensors."""
    with open_checkpoint(path) as file:
        return {name: tensor.clone() for name, tensor in file.items()}, dict(file.metadata)


def _cast(name: str, tensor: Tensor, precision: Precision, path: Path) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise PlainError(
            f"{path} was not written: {name} holds values that are not finite numbers; the training has diverged, so "
            "go back to an earlier checkpoint and lower the learning rate."
        )
    # The factor alpha / r must not be rounded: a half-precision alpha would change every weight.
    cast = tensor.float() if name.endswith(".alpha") else tensor.to(DTYPES[precision])
    if not bool(torch.isfinite(cast).all()):
        raise PlainError(
            f"{path} was not written: {name} reaches {float(tensor.abs().max()):.3g}, which {precision} cannot hold; "
            "write it with output.precision: bf16 or fp32."
        )
    return cast.contiguous()
