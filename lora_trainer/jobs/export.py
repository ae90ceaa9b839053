"""A LoRA file in another naming or precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from lora_trainer.contracts import NetworkState, PlainError
from lora_trainer.jobs.lora_files import kohya_namer, read
from lora_trainer.networks.dialects import to_kohya, to_peft
from lora_trainer.networks.file import DTYPES, Precision, write_tensors
from lora_trainer.networks.state import modules_of


def export(
    input: Path, output: Path, format: Literal["kohya", "peft"] = "kohya", precision: Precision | None = None
) -> str:
    """Write the LoRA at `input` to `output`; its notes stay, but for its name. Sentences for the user, one a line.

    Kohya's names are read by the WebUIs, peft's by diffusers. Without `precision` it stays what it is. Raises
    PlainError for a file that is no LoRA, a name that is taken, and values that `precision` cannot hold.
    """
    refuse_taken(output)
    lora = read(input)
    precision = precision or _precision(lora.state)
    tensors = to_kohya(lora.state, kohya_namer(lora.family)) if format == "kohya" else to_peft(lora.state)
    # The WebUI lists files by this name and shows only one of two that share it.
    names = {key: output.stem for key in ("ss_output_name", "modelspec.title") if key in lora.metadata}
    notes = {key: value for key, value in lora.metadata.items() if not key.startswith("sshs_")}
    write_tensors(output, tensors, metadata={**notes, **names}, precision=precision)
    modules = modules_of(lora.state)
    told = [
        f"Wrote {output}: {len(modules)} modules for {lora.family.title}, in the names of "
        f"{'kohya (WebUIs)' if format == 'kohya' else 'peft (diffusers)'}, {precision}."
    ]
    if format == "peft" and any(weights.scale != 1 for weights in modules.values()):
        told.append("These names know no alpha, so alpha / rank was multiplied into lora_B.")
    return "\n".join(told)


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
