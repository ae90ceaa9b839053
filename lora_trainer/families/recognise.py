"""What a file is, told from the names in its header; above all what it is where it is no base model.

Judged by names first: widths differ in slim models, names do not. The table gives one or a few telling tensors of each
kind of file that people take for a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from lora_trainer.contracts import PlainError, TensorInfo

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_FIRST_CONV = _UNET + "input_blocks.0.0.weight"
_WANTED = "choose a whole SD1, SD2 or SDXL checkpoint"
_OF_LORA = "name the checkpoint that it is for, and give the LoRA to lora_path"

# What the text encoders' names begin with tells the family (AUTOMATIC1111 v1.10.1, modules/sd_models_config.py).
_TEXT_PREFIXES = {
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "sd2": ("cond_stage_model.model.",),
    "sd1": ("cond_stage_model.transformer.",),
}
# The UNet's input channels: latents, and what else a variant is shown beside them.
_VARIANTS = {
    9: "an inpainting model", 8: "an instruct-pix2pix model", 7: "an upscaling model", 5: "a depth model",
}  # fmt: skip


class _Other(NamedTuple):
    what: str
    names: tuple[str, ...]  # regular expressions, any of which is found in some name
    advice: str = _WANTED


# Whole checkpoints in LDM's layout that are of another kind.
_OTHER_CHECKPOINTS = (
    _Other("a ControlNet, not a base model", (r"^control_model\.",)),
    _Other("a video model, which is not supported", (r"time_stack\.", r"time_mixer", r"\.temp_conv", r"temporal_")),
    _Other("an unCLIP model (its UNet wants a picture), which is not supported", (r"^embedder\.model\.",)),
    _Other("trained for the EDM schedule, which is not supported", (r"^edm_mean$", r"^edm_vpred\.")),
)
# Everything else, in this order: the first that is found counts.
_OTHER_FILES = (
    _Other(
        "a LoRA or LyCORIS file, not a base model",
        (
            *(r"lora_(?:up|down|mid|A|B)\b", r"lora_linear_layer", r"^lora_(?:unet|te)", r"^lycoris_"),
            *(r"\.hada_w1", r"\.lokr_w[12]", r"\.oft_(?:blocks|diag)"),
        ),
        _OF_LORA,
    ),
    _Other("a textual inversion, not a base model", (r"^string_to_param", r"^emb_params$", r"^clip_[lg]$", r"^<.+>$")),
    _Other(
        "a ControlNet, not a base model",
        (r"^control_model\.", r"^controlnet_", r"^input_hint_block", r"^zero_convs\.", r"^adapter\."),
    ),
    _Other(
        "Flux, which is not supported",
        (r"double_blocks\.\d+\.(?:img|txt)_", r"^single_transformer_blocks\.\d+\.proj_mlp"),
    ),
    _Other(
        "Stable Diffusion 3, which is not supported",
        (r"joint_blocks\.\d+\.", r"^transformer_blocks\.\d+\.attn\.add_q_proj"),
    ),
    _Other(
        "Stable Cascade, which is not supported",
        (r"clip_txt(?:_pooled)?_mapper", r"blocks\.\d+\.\d+\.channelwise"),
    ),
    _Other("PixArt, which is not supported", (r"adaln_single\.", r"^(?:net\.)?t_block\.1\.", r"y_embedder\.y_proj")),
    _Other("Hunyuan-DiT, which is not supported", (r"mlp_t5\.", r"^text_embedding_padding$")),
    _Other("a motion module for AnimateDiff, not a base model", (r"motion_modules\.", r"temporal_transformer")),
    _Other("a T5 text encoder alone, without UNet and VAE", (r"block\.\d+\.layer\.\d+\.SelfAttention",)),
    _Other(
        "a language model, not an image model",
        (
            *(r"^(?:model\.)?layers\.\d+\.(?:self_attn|mlp|attention)\.", r"^lm_head\."),
            *(r"^(?:transformer\.)?h\.\d+\.", r"^gpt_neox"),
        ),
    ),
    _Other(
        "an upscaler, not a base model",
        (
            *(r"RRDB_trunk", r"^body\.\d+\.(?:rdb\d|weight)", r"^model\.1\.sub\."),
            *(r"^layers\.\d+\.residual_group", r"^upsampler?\."),
        ),
    ),
)


def family_of_names(header: Mapping[str, TensorInfo]) -> str | None:
    """The family's name by the text encoders that stand beside a UNet and a VAE; None for anything else."""
    if not (_has(header, _UNET + "input_blocks.") and _has(header, _VAE)):
        return None
    for name, prefixes in _TEXT_PREFIXES.items():
        if all(_has(header, prefix) for prefix in prefixes):
            return name
    return None


def refuse_other_kinds(header: Mapping[str, TensorInfo], path: Path | str) -> None:
    """Raise PlainError, naming the kind, for a file that is known to be something else than a usable checkpoint."""
    if not _has(header, _UNET + "input_blocks."):
        _refuse(_OTHER_FILES, header, path)
        return
    _refuse(_OTHER_CHECKPOINTS, header, path)
    if _has(header, "conditioner.embedders.0.model."):  # open_clip's tower in the place of CLIP-L
        raise PlainError(f"{path} is the SDXL refiner, which works on nearly finished images; choose the SDXL base.")
    channels = header[_FIRST_CONV].shape[1] if _FIRST_CONV in header else 4
    if channels != 4:
        kind = _VARIANTS.get(channels, "a model of an unknown kind")
        raise PlainError(
            f"{path} is {kind} (its UNet takes {channels} channels, not 4), which is not supported; {_WANTED}."
        )


def why_not_whole(header: Mapping[str, TensorInfo], path: Path | str) -> str:
    """A sentence on what is missing in, or unknown about, a file that no family recognised."""
    unet, vae = _has(header, _UNET + "input_blocks."), _has(header, _VAE)
    text = _has(header, "cond_stage_model.") or _has(header, "conditioner.")
    if unet:
        missing = [what for what, there in (("VAE", vae), ("text encoder", text)) if not there]
        if missing:
            return f"{path} holds a UNet but no {' and no '.join(missing)}; {_WANTED}."
        return f"{path} holds a UNet with text encoders of an unknown kind; {_WANTED}."
    if vae or (_has(header, "encoder.") and _has(header, "decoder.")):
        return f"{path} is a VAE alone, without UNet and text encoder; {_WANTED}."
    if _has(header, "down_blocks.") and _has(header, "mid_block."):
        return f"{path} is a UNet alone, out of a diffusers folder; name the folder that holds model_index.json."
    if text or _has(header, "text_model."):
        return f"{path} is a text encoder alone, without UNet and VAE; {_WANTED}."
    return f"{path} is of an unknown kind (it holds {', '.join(sorted(header)[:3])} ...); {_WANTED}."


def _refuse(others: Iterable[_Other], header: Mapping[str, TensorInfo], path: Path | str) -> None:
    for other in others:
        pattern = re.compile("|".join(f"(?:{name})" for name in other.names))
        if any(pattern.search(name) for name in header):
            raise PlainError(f"{path} is {other.what}; {other.advice}.")


def _has(header: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in header)
