"""Names of modules in LoRA files: kohya's, which every host reads, and the other spellings found in the wild.

kohya writes a module's path with "_" for "."; undoing that needs the words that hold a "_" themselves. UNet paths are
diffusers' (SD1, SD2) or LDM's (SDXL); both are understood for either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lora_trainer.families.ldm_names import UnetNames
from lora_trainer.families.text import canonical_path

# Every word that occurs in a path, of the modules that carry weights and those around them. diffusers, LDM, CLIP.
_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "transformer_blocks", "downsamplers",
    "upsamplers", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj", "proj_in",
    "proj_out", "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "conv_norm_out",
    "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2", "norm", "norm1", "norm2",
    "norm3", "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers",
    "skip_connection", "op", "time_embed", "label_emb", "out", "text_model", "encoder", "layers", "self_attn",
    "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2", "layer_norm1", "layer_norm2",
    "final_layer_norm", "embeddings", "token_embedding", "position_embedding", "text_projection",
)  # fmt: skip
_WORD = re.compile("(" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r"|\d+)(?:_|$)")
_LDM_UNET = ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out")
_DIFFUSERS_UNET = ("down_blocks", "up_blocks", "mid_block", "time_embedding", "add_embedding", "conv_in", "conv_out")
_UNET_PREFIXES = ("lora_unet_", "lycoris_", "unet.", "model.diffusion_model.", "diffusion_model.")
# diffusers before 0.17 kept a LoRA in attention processors: "....attn1.processor.to_q_lora".
_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)_lora$")


def kohya_text_name(prefix: str, path: str) -> str:
    """kohya's name of a text module: encoder.layers.0.mlp.fc1 to lora_te1_text_model_encoder_layers_0_mlp_fc1."""
    path = canonical_path(path)
    level = "" if path.startswith("text_projection") else "text_model_"
    return f"{prefix}_{level}{path.replace('.', '_')}"


def find_module(name: str, unet: UnetNames, text_parts: Mapping[str, str]) -> tuple[str, str] | None:
    """(part, path in diffusers' or transformers' canonical names) of a module named in a LoRA file, or None.

    `unet` is the structure that LDM names are read by; `text_parts` gives the part for each prefix of a text
    encoder ("lora_te1", "text_encoder_2") that the family has.
    """
    name = name.removeprefix("base_model.model.")
    name = _PROCESSOR.sub(lambda match: f".to_{match[1]}" + (".0" if match[1] == "out" else ""), name)
    for prefix in sorted(text_parts, key=len, reverse=True):
        if name.startswith((prefix + "_", prefix + ".")):
            return _text(text_parts[prefix], name[len(prefix) + 1 :])
    for prefix in _UNET_PREFIXES:
        if name.startswith(prefix):
            return _unet(name[len(prefix) :], unet)
    if name.startswith(("text_model.", "encoder.layers.")) and "text_encoder" in text_parts:
        return _text(text_parts["text_encoder"], name)
    return _unet(name, unet)


def _unet(name: str, names: UnetNames) -> tuple[str, str] | None:
    path = _dotted(name)
    if path is None:
        return None
    head = path.partition(".")[0]
    if head in _LDM_UNET:
        try:
            path = names.to_diffusers(path)
        except KeyError:
            return None
    elif head not in _DIFFUSERS_UNET:
        return None
    return "unet", path


def _text(part: str, name: str) -> tuple[str, str] | None:
    path = _dotted(name)
    if path is None:
        return None
    path = canonical_path(path)
    return (part, path) if path.startswith(("encoder.", "embeddings.", "final_layer_norm", "text_projection")) else None


def _dotted(name: str) -> str | None:
    """Dots for the right "_": mid_block_attentions_0_proj_in to mid_block.attentions.0.proj_in; None if unknown."""
    if "." in name:
        return name
    words, place = [], 0
    while place < len(name):
        match = _WORD.match(name, place)
        if match is None:
            return None
        words.append(match[1])
        place = match.end()
    return ".".join(words)
