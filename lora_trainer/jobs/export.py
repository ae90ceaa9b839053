"""A LoRA file in another naming or precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from lora_trainer.contracts import NetworkState, PlainError
from lora_trainer.jobs.files import ADAPTER
from lora_trainer.jobs.lora_files import LoraFile, kohya_namer, read
from lora_trainer.jobs.plain import Plain, plain_lora
from lora_trainer.networks.changes import changes_of
from lora_trainer.networks.dialects import to_kohya, to_peft
from lora_trainer.networks.file import DTYPES, Precision, write_tensors
from lora_trainer.networks.metadata import described_as

NOTHING = 1e-5  # of a change, in which float32 and half precision differ anyway


def export(
    input: Path,
    output: Path,
    format: Literal["kohya", "peft", "lora"] = "kohya",
    precision: Precision | None = None,
    *,
    rank: int | None = None,
    base: Path | None = None,
) -> str:
    """Write the network at `input` to `output`; its notes stay, but for its name. Sentences for the user, one a line.

    Kohya's names are read by the WebUIs, peft's by diffusers, which know plain LoRA only. `lora` makes a plain LoRA of
    `rank` out of any kind, in kohya's names, the nearest there is; DoRA and OFT need their `base` for it. Without
    `precision` it stays what it is. Raises PlainError for a file that is no network, a name that is taken, and values
    that `precision` cannot hold.
    """
    refuse_taken(output)
    if (rank is None) != (format != "lora"):
        raise PlainError("A rank goes with the format lora, and with no other: write --format lora --rank 16.")
    if (input / ADAPTER).is_file():
        raise PlainError(
            f"{input} is an adapter of a language model, which peft and its servers read as it is; to work it into the "
            "model, use merge."
        )
    lora = read(input)
    if rank is not None:
        return write_plain(plain_lora(lora, rank, base, input.name), lora, output, rank, precision)
    precision, notes, state = precision or _precision(lora.state), _notes(lora, output), lora.state
    told: list[str] = []
    if format == "peft":
        _refuse_but_plain(state, input)
    tensors = to_peft(state) if format == "peft" else to_kohya(state, kohya_namer(lora.family))
    write_tensors(output, tensors, metadata=notes, precision=precision)
    changes = changes_of(state)
    names = "peft (diffusers)" if format == "peft" else "kohya (WebUIs)"
    told.append(_written(output, lora, len(changes), names, precision))
    if format == "peft" and any(change.scale != 1 for change in changes.values()):
        told.append("These names know no alpha, so alpha / rank was multiplied into lora_B.")
    return "\n".join(told)


def write_plain(plain: Plain, lora: LoraFile, output: Path, rank: int, precision: Precision | None = None) -> str:
    """Write what `lora` was made into, in kohya's names; sentences on that and on what is lost, one a line."""
    precision = precision or _precision(lora.state)
    notes = _notes(lora, output) | described_as("lora", rank, float(rank), convolutions=_windows(plain.state))
    write_tensors(output, to_kohya(plain.state, kohya_namer(lora.family)), metadata=notes, precision=precision)
    told = _written(output, lora, len(changes_of(plain.state)), "kohya (WebUIs)", precision)
    return f"{told}\n{_lost(plain)}"


def _notes(lora: LoraFile, output: Path) -> dict[str, str]:
    """The file's own, under the new name: the WebUI lists files by it and shows only one of two that share it."""
    notes = {key: value for key, value in lora.metadata.items() if not key.startswith("sshs_")}
    return notes | {key: output.stem for key in ("ss_output_name", "modelspec.title") if key in notes}


def _written(output: Path, lora: LoraFile, modules: int, names: str, precision: Precision) -> str:
    return f"Wrote {output}: {modules} modules for {lora.family.title}, in the names of {names}, {precision}."


def _lost(plain: Plain) -> str:
    if plain.error < NOTHING:
        return "It does what the file did: nothing of its change is lost."
    name, worst = plain.worst
    return f"Of the change {plain.error:.1%} is lost (of {name} most, {worst:.1%}); a higher rank loses less."


def _refuse_but_plain(state: NetworkState, input: Path) -> None:
    kinds = {change.kind for change in changes_of(state).values()} - {"lora"}
    if kinds:
        raise PlainError(
            f"{input.name} is of the kind {min(kinds)}, for which diffusers has no names; make it a plain LoRA first, "
            "with --format lora --rank 16."
        )


def _windows(state: NetworkState) -> bool:
    return any(tensor.dim() == 4 and tensor.shape[-1] > 1 for tensor in state.values())


def refuse_taken(output: Path) -> None:
    """Raise PlainError where something stands at `output`, or hosts would not list a file of that name."""
    if output.exists():
        raise PlainError(f"{output} exists already and is not overwritten; choose another name, or remove it first.")
    if output.suffix != ".safetensors":
        raise PlainError(f"{output} should end in .safetensors, which is what is written and what hosts list.")


def _precision(state: NetworkState) -> Precision:
    """The narrowest format that holds every weight as it is."""
    found = {tensor.dtype for name, tensor in state.items() if not name.endswith(".alpha")}
    names: dict[torch.dtype, Precision] = {DTYPES["fp16"]: "fp16", DTYPES["bf16"]: "bf16"}
    return names.get(found.pop(), "fp32") if len(found) == 1 else "fp32"
