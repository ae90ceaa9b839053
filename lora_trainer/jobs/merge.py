"""LoRA files worked into a checkpoint, which then needs them no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_trainer.contracts import PlainError, TensorInfo
from lora_trainer.families.language.recognise import is_language_model
from lora_trainer.jobs.base_weights import BaseWeights
from lora_trainer.jobs.export import refuse_taken
from lora_trainer.networks.changes import Change, changes_of
from lora_trainer.networks.dialects import to_state
from lora_trainer.networks.file import DTYPES, Precision, read_lora
from lora_trainer.weights.hashes import data_hash
from lora_trainer.weights.read import dtype_name
from lora_trainer.weights.write import write_stream

MERGED = "lora_trainer.merged"  # note in the file: what was worked in, at which weight
_FLOATING = ("F64", "F32", "F16", "BF16")
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of the tensors before


class _Applied(NamedTuple):
    """What one module of one LoRA does to one tensor of the checkpoint."""

    rows: slice | None
    change: Change
    weight: float


def merge(
    base: Path, loras: Sequence[tuple[Path, float]], output: Path, precision: Precision | None = None,
    *, overwrite: bool = False,
) -> str:  # fmt: skip
    """Write `base` with each LoRA added at its weight to `output`. Sentences for the user, one a line.

    What each kind does to a weight (networks/changes.py), times the LoRA's weight, is added in float32 and rounded once
    to the tensor's own format, or to `precision`. Tensors that no LoRA touches are taken over byte by byte, unless
    `precision` recasts them. One tensor is held at a time. Raises PlainError, writing nothing, where a LoRA does not
    fit, or `output` is taken and `overwrite` is not set; never over the base.
    """
    base, output = Path(base), Path(output)
    if is_language_model(base):
        from lora_trainer.jobs.text_merge import merge_text

        return merge_text(base, [(Path(path), weight) for path, weight in loras], output, precision)
    if output.exists() and (output.samefile(base) or any(output.samefile(path) for path, _ in loras)):
        raise PlainError(f"{output} is one of the files to be merged and is not overwritten; choose another name.")
    if not overwrite:
        refuse_taken(output)
    weights = BaseWeights(base)
    stored, family = weights.stored, weights.family
    changes: dict[str, list[_Applied]] = {}
    told: list[str] = []
    for path, weight in loras:
        count = _add(changes, Path(path), weight, weights)
        told.append(f"{path.name} at {weight:g}: {count} modules.")
    header = {name: _recast(info, precision) for name, info in stored.header.items()}
    merged = [{"lora": path.stem, "weight": weight, "hash": _hash(path)} for path, weight in loras]
    notes = {key: value for key, value in stored.metadata.items() if key not in _STALE}
    earlier = json.loads(notes.get(MERGED, "[]"))
    notes[MERGED] = json.dumps([*earlier, *merged], ensure_ascii=False, sort_keys=True)
    write_stream(output, header, _tensors(stored, changes, header, output), notes)
    touched = f"{len(changes)} of {len(header)} tensors changed"
    return "\n".join([*told, f"Wrote {output}: {base.name} for {family.title} with them worked in; {touched}."])


def _add(changes: dict[str, list[_Applied]], path: Path, weight: float, base: BaseWeights) -> int:
    """Note what the LoRA at `path` does to which tensor; the number of its modules."""
    tensors, _ = read_lora(path)
    modules = changes_of(
        to_state(tensors, base.family.module_of, f"{path.name}, read as a LoRA for {base.family.title},")
    )
    for name, change in modules.items():
        place = base.place(name, change, path.name)
        changes.setdefault(place.key, []).append(_Applied(place.rows, change, weight))
    return len(modules)


def _tensors(
    stored: Mapping[str, Tensor],
    changes: Mapping[str, Sequence[_Applied]],
    header: Mapping[str, TensorInfo],
    output: Path,
) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's tensors one by one, changed where they are and in the format that `header` says."""
    dtypes = {dtype_name(dtype): dtype for dtype in (torch.float64, *DTYPES.values())}
    for name, tensor in stored.items():
        if name not in changes:
            yield name, tensor.to(dtypes.get(header[name].dtype, tensor.dtype))
            continue
        changed = _changed(tensor, changes[name]).to(dtypes.get(header[name].dtype, tensor.dtype))
        if not bool(torch.isfinite(changed).all()):
            raise PlainError(
                f"{output} was not written: with the LoRA {name} exceeds what {header[name].dtype} can hold; take a "
                "lower weight or a wider precision."
            )
        yield name, changed


def _changed(tensor: Tensor, changes: Sequence[_Applied]) -> Tensor:
    """A float32 copy of a tensor, changed by one LoRA after the other, as the WebUIs apply those of a prompt."""
    result = tensor.to(torch.float32, copy=True)
    for applied in changes:
        target = result if applied.rows is None else result[applied.rows]
        target += applied.change.delta(target) * applied.weight
    return result


def _recast(info: TensorInfo, precision: Precision | None) -> TensorInfo:
    if precision is None or info.dtype not in _FLOATING:
        return info
    return TensorInfo(dtype_name(DTYPES[precision]), info.shape)


def _hash(path: Path) -> str:
    return data_hash(path) if path.suffix == ".safetensors" else ""
