"""LoRA files worked into a checkpoint, which then needs them no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_trainer.contracts import BaseModel, Family, LdmPlace, LentModel, PlainError, TensorInfo
from lora_trainer.families.diffusers_folder import open_folder
from lora_trainer.families.registry import identify
from lora_trainer.jobs.export import refuse_taken
from lora_trainer.networks.dialects import to_state
from lora_trainer.networks.file import DTYPES, Precision, read_lora
from lora_trainer.networks.state import ModuleWeights, modules_of
from lora_trainer.weights.hashes import data_hash
from lora_trainer.weights.read import dtype_name, open_checkpoint
from lora_trainer.weights.write import write_stream

MERGED = "lora_trainer.merged"  # note in the file: what was worked in, at which weight
_FLOATING = ("F64", "F32", "F16", "BF16")
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # of the tensors before


class _Change(NamedTuple):
    """What one module of one LoRA adds to one tensor of the checkpoint."""

    rows: slice | None
    weights: ModuleWeights
    weight: float


def merge(
    base: Path, loras: Sequence[tuple[Path, float]], output: Path, precision: Precision | None = None,
    *, overwrite: bool = False,
) -> str:  # fmt: skip
    """Write `base` with each LoRA added at its weight to `output`. Sentences for the user, one a line.

    The change up @ down alpha / r times the weight is added in float32 and rounded once to the tensor's own format,
    or to `precision`. Tensors that no LoRA touches are taken over byte by byte, unless `precision` recasts them. One
    tensor is held at a time. Raises PlainError, writing nothing, where a LoRA does not fit, or `output` is taken and
    `overwrite` is not set; never over the base.
    """
    base, output = Path(base), Path(output)
    if output.exists() and (output.samefile(base) or any(output.samefile(path) for path, _ in loras)):
        raise PlainError(f"{output} is one of the files to be merged and is not overwritten; choose another name.")
    if not overwrite:
        refuse_taken(output)
    stored = open_folder(base) if base.is_dir() else open_checkpoint(base)
    family, facts = identify(stored.header, base, stored.metadata)
    # No part is built: only the names are asked for.
    model = family.adopt(
        LentModel(stored, stored.header, facts, base.stem, base, owned=True),
        torch.device("cpu"), torch.float32, parts=(),
    )  # fmt: skip
    changes: dict[str, list[_Change]] = {}
    told: list[str] = []
    for path, weight in loras:
        count = _add(changes, Path(path), weight, family, model, stored.header)
        told.append(f"{path.name} at {weight:g}: {count} modules.")
    header = {name: _recast(info, precision) for name, info in stored.header.items()}
    merged = [{"lora": path.stem, "weight": weight, "hash": _hash(path)} for path, weight in loras]
    notes = {key: value for key, value in stored.metadata.items() if key not in _STALE}
    earlier = json.loads(notes.get(MERGED, "[]"))
    notes[MERGED] = json.dumps([*earlier, *merged], ensure_ascii=False, sort_keys=True)
    write_stream(output, header, _tensors(stored, changes, header, output), notes)
    touched = f"{len(changes)} of {len(header)} tensors changed"
    return "\n".join([*told, f"Wrote {output}: {base.name} for {family.title} with them worked in; {touched}."])


def _add(
    changes: dict[str, list[_Change]], path: Path, weight: float,
    family: Family, model: BaseModel, header: Mapping[str, TensorInfo],
) -> int:  # fmt: skip
    """Note what the LoRA at `path` adds to which tensor; the number of its modules."""
    tensors, _ = read_lora(path)
    modules = modules_of(to_state(tensors, family.module_of, f"{path.name}, read as a LoRA for {family.title},"))
    for name, weights in modules.items():
        part, _, module = name.partition(".")
        place = _place(model, part, module, path)
        shape = header[place.key].shape if place.key in header else ()
        rows = len(range(*place.rows.indices(shape[0]))) if place.rows and shape else (shape or (0,))[0]
        found = (weights.up.shape[0], weights.down[0].numel())
        wanted = (rows, torch.Size(shape[1:]).numel())
        if found != wanted:
            raise PlainError(
                f"{path.name} does not fit the checkpoint: {name} is {found} there and {wanted} here; choose a LoRA "
                "made for this kind of base model."
            )
        if not bool(torch.isfinite(weights.up).all() and torch.isfinite(weights.down).all()):
            raise PlainError(f"{path.name} is spoilt: {name} holds values that are not finite numbers; train it anew.")
        changes.setdefault(place.key, []).append(_Change(place.rows, weights, weight))
    return len(modules)


def _place(model: BaseModel, part: str, module: str, path: Path) -> LdmPlace:
    try:
        return model.ldm_place(part, module)
    except KeyError as error:
        raise PlainError(f"{path.name} does not fit the checkpoint, which has no module {part}.{module}.") from error


def _tensors(
    stored: Mapping[str, Tensor],
    changes: Mapping[str, Sequence[_Change]],
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


def _changed(tensor: Tensor, changes: Sequence[_Change]) -> Tensor:
    """A float32 copy of a tensor with the changes added."""
    result = tensor.to(torch.float32, copy=True)
    for change in changes:
        target = result if change.rows is None else result[change.rows]
        target += change.weights.delta().reshape(target.shape) * change.weight
    return result


def _recast(info: TensorInfo, precision: Precision | None) -> TensorInfo:
    if precision is None or info.dtype not in _FLOATING:
        return info
    return TensorInfo(dtype_name(DTYPES[precision]), info.shape)


def _hash(path: Path) -> str:
    return data_hash(path) if path.suffix == ".safetensors" else ""
