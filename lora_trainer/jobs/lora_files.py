"""LoRA files without their base model: which family they are for, and the names that its hosts read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor

from lora_trainer.contracts import Family, NetworkState, PlainError
from lora_trainer.families.diffusion import DiffusionFamily
from lora_trainer.families.lora_names import kohya_text_name
from lora_trainer.families.registry import families
from lora_trainer.networks.changes import Change, changes_of
from lora_trainer.networks.dialects import KohyaName, module_names, refuse_unread, to_state
from lora_trainer.networks.file import read_lora

# Widths of the full-size models: of the text states that cross attention reads, and of each text encoder
# (CompVis v1-inference.yaml, Stability's v2-inference.yaml and sd_xl_base.yaml).
_CONTEXT = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
_TEXT = {"sd1": {"text_encoder": 768}, "sd2": {"text_encoder": 1024},
         "sdxl": {"text_encoder": 768, "text_encoder_2": 1280}}  # fmt: skip
_CROSS_ATTENTION = re.compile(r"unet\..*\.attn2\.to_[kv]$")
_SELF_ATTENTION = re.compile(r"(text_encoder\w*)\..*\.self_attn\.q_proj$")
_DEEP = re.compile(r"unet\..*\.transformer_blocks\.[1-9]")  # only SDXL has more than one in a row


class LoraFile(NamedTuple):
    """A LoRA file that was read and understood."""

    state: NetworkState  # in the file's precision
    metadata: dict[str, str]
    family: Family


def read(path: Path) -> LoraFile:
    """The LoRA at `path`, of whatever family. Raises PlainError if it is none, or its family cannot be told."""
    tensors, metadata = read_lora(path)
    refuse_unread(tensors, path.name)
    family = family_of(tensors, metadata, path.name)
    return LoraFile(to_state(tensors, family.module_of, path.name), metadata, family)


def family_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> Family:
    """The family a LoRA is for.

    Names rule out; then the file's notes decide, then widths, then depth. Notes come before widths because slim
    models have other widths. Raises PlainError where none fits, or several do.
    """
    names = module_names(tensors)
    fitting = [family for family in families() if all(family.module_of(name) for name in names)]
    if not fitting:
        raise PlainError(
            f"{source} is for no family that is known: {names[0]} and others of its {len(names)} modules are in none "
            f"of {', '.join(family.title for family in families())}."
        )
    noted = [family for family in fitting if family.name == _noted(metadata)]
    like = [family for family in fitting if _widths_agree(family, to_state(tensors, family.module_of, source))]
    for chosen in (noted, like, fitting):
        if len(chosen) == 1:
            return chosen[0]
    raise PlainError(
        f"{source} could be for {' or '.join(family.title for family in like or fitting)}, and neither its notes nor "
        "its widths tell which; use a file that still has its ss_base_model_version."
    )


def kohya_namer(family: Family) -> KohyaName:
    """The names of the family's modules in a LoRA file, with the structure of its full-size model."""
    kind = cast(DiffusionFamily, family)

    def name(part: str, path: str) -> str:
        if part != "unet":
            return kohya_text_name(kind.towers[part].lora_prefix, path)
        try:
            return "lora_unet_" + kind.lora_unet_path(kind.unet_names, path).replace(".", "_")
        except KeyError as error:
            raise PlainError(f"The UNet of {family.title} has no {path}; check which base the LoRA is for.") from error

    return name


def _noted(metadata: Mapping[str, str]) -> str:
    """Name of the family in the notes, as the WebUI reads them (extensions-builtin/Lora/network.py:61-69); or ""."""
    version = metadata.get("ss_base_model_version", "")
    if version.startswith("sdxl_"):
        return "sdxl"
    if metadata.get("ss_v2") == "True" or version.startswith("sd_v2"):
        return "sd2"
    return "sd1" if version.startswith("sd_") else ""


def _widths_agree(family: Family, state: NetworkState) -> bool:
    modules = changes_of(state)
    if any(_DEEP.match(name) for name in modules) and family.name != "sdxl":
        return False
    return all(_agrees(_expected(family.name, name), change) for name, change in modules.items())


def _expected(family: str, name: str) -> int | None:
    if _CROSS_ATTENTION.match(name):
        return _CONTEXT[family]
    match = _SELF_ATTENTION.match(name)
    return _TEXT[family].get(match[1]) if match else None


def _agrees(width: int | None, change: Change) -> bool:
    """Whether the layer's inputs may be so many; an OFT does not tell."""
    return width is None or change.shape[1] in (None, width)
