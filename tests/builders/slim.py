"""Random-weight checkpoints in the real LDM names and layout, slim in width, so that a test takes milliseconds.

Numbers and order of the blocks are those of the real UNets and VAE (SD1, SD2: 686 + 248 tensors), so every name occurs;
GroupNorm's 32 groups and the heads of 64 channels (SD2, SDXL) set the least widths; SD1's lowest level has 64, because
at 64 pixels it sees a single cell, and torch refuses groups of one value. No output layer is zero, as the
real initialisation has it: everything would come out constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

Kind = Literal["sd1", "sd2", "sdxl"]
Shapes = Iterator[tuple[str, tuple[int, ...]]]

TEXT_WIDTH = 64  # one head of CLIP
TEXT_LAYERS = 3
TOKENS = 49408  # of CLIP's vocabulary; captions are read with the real tokenizer
TIME_IDS = 6 * 256  # SDXL: six sizes, 256 sine and cosine values each


@dataclass(frozen=True)
class Sketch:
    """What the kinds differ in. A level of depth 0 has no attention; where widths change, blocks have a shortcut."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    mid_depth: int
    linear: bool  # projections around the transformers
    context: int
    classes: int  # width of SDXL's vector conditioning
    blocks: int = 2  # residual blocks a level


SKETCHES: dict[Kind, Sketch] = {
    "sd1": Sketch((32, 96, 64, 64), (1, 1, 1, 0), 1, False, TEXT_WIDTH, 0),
    "sd2": Sketch((64, 128, 64, 64), (1, 1, 1, 0), 1, True, TEXT_WIDTH, 0),
    "sdxl": Sketch((64, 128, 64), (0, 1, 2), 2, True, 2 * TEXT_WIDTH, TEXT_WIDTH + TIME_IDS),
}
VAE_CHANNELS = (32, 64, 96, 96)


def slim_checkpoint(
    kind: Kind, seed: int = 0, dtype: torch.dtype = torch.float32, v_pred: bool = False, sketch: Sketch | None = None
) -> dict[str, Tensor]:
    """Tensors of a whole checkpoint: the same seed gives the same. `v_pred` marks it as such files are marked:
    SDXL by two empty tensors, SD2 by what its UNet answers.

    The dictionary is the caller's, the tensors are shared with who asks for the same: replace them, do not change them.
    """
    return dict(_checkpoint(kind, seed, dtype, v_pred, sketch or SKETCHES[kind]))


@lru_cache(maxsize=8)
def _checkpoint(kind: Kind, seed: int, dtype: torch.dtype, v_pred: bool, sketch: Sketch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(all_shapes(kind, sketch))
    tensors = {name: _fill(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    if kind == "sdxl" and v_pred:
        tensors |= {"v_pred": torch.zeros(0, dtype=dtype), "ztsnr": torch.zeros(0, dtype=dtype)}
    if kind == "sd2" and v_pred:
        tensors["model.diffusion_model.out.2.bias"] -= 3
    if kind == "sd1":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        tensors |= {"betas": betas.float(), "alphas_cumprod": torch.cumprod(1 - betas, 0).float()}
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors


def write_slim(path: Path, kind: Kind, seed: int = 0, metadata: dict[str, str] | None = None, **more: Any) -> Path:
    """Write such a checkpoint as safetensors; returns the path."""
    save_file(slim_checkpoint(kind, seed, **more), str(path), metadata)
    return path


def _fill(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        fan_in = torch.Size(shape[1:]).numel()
        return values * (0.5 if "embedding" in name else fan_in**-0.5)
    return values * 0.05 + (1.0 if name.endswith("weight") else 0.0)  # one dimension: norms' weights, and biases


def all_shapes(kind: Kind, sketch: Sketch) -> Shapes:
    """Names and shapes of a whole checkpoint."""
    for name, shape in unet_shapes(sketch):
        yield f"model.diffusion_model.{name}", shape
    for name, shape in vae_shapes(VAE_CHANNELS):
        yield f"first_stage_model.{name}", shape
    if kind == "sd1":
        yield from clip_shapes("cond_stage_model.transformer.text_model.")
    elif kind == "sd2":
        yield from open_clip_shapes("cond_stage_model.model.")
    else:
        yield from clip_shapes("conditioner.embedders.0.transformer.text_model.")
        yield from open_clip_shapes("conditioner.embedders.1.model.")


# --- UNet ------------------------------------------------------------------------------------------------------------


def unet_shapes(s: Sketch) -> Shapes:
    """Names, without prefix, and shapes of an LDM UNet."""
    first, time = s.channels[0], 4 * s.channels[0]
    yield from _linear("time_embed.0", first, time)
    yield from _linear("time_embed.2", time, time)
    if s.classes:
        yield from _linear("label_emb.0.0", s.classes, time)
        yield from _linear("label_emb.0.2", time, time)
    yield from _conv("input_blocks.0.0", 4, first)
    place, width, skips = 1, first, [first]
    for level, channels in enumerate(s.channels):
        for _ in range(s.blocks):
            yield from _stage(s, f"input_blocks.{place}", width, channels, s.depths[level])
            place, width = place + 1, channels
            skips.append(width)
        if level + 1 < len(s.channels):
            yield from _conv(f"input_blocks.{place}.0.op", width, width)
            place += 1
            skips.append(width)
    yield from _residual("middle_block.0", width, width, time)
    yield from _transformer(s, "middle_block.1", width, s.mid_depth)
    yield from _residual("middle_block.2", width, width, time)
    place = 0
    for level, channels in reversed(list(enumerate(s.channels))):
        for number in range(s.blocks + 1):
            yield from _stage(s, f"output_blocks.{place}", width + skips.pop(), channels, s.depths[level])
            width = channels
            if level and number == s.blocks:
                slot = 2 if s.depths[level] else 1
                yield from _conv(f"output_blocks.{place}.{slot}.conv", width, width)
            place += 1
    yield from _norm("out.0", width)
    yield from _conv("out.2", width, 4)


def _stage(s: Sketch, name: str, width: int, channels: int, depth: int) -> Shapes:
    yield from _residual(f"{name}.0", width, channels, 4 * s.channels[0])
    if depth:
        yield from _transformer(s, f"{name}.1", channels, depth)


def _residual(name: str, width: int, channels: int, time: int) -> Shapes:
    yield from _norm(f"{name}.in_layers.0", width)
    yield from _conv(f"{name}.in_layers.2", width, channels)
    yield from _linear(f"{name}.emb_layers.1", time, channels)
    yield from _norm(f"{name}.out_layers.0", channels)
    yield from _conv(f"{name}.out_layers.3", channels, channels)
    if width != channels:
        yield from _conv(f"{name}.skip_connection", width, channels, 1)


def _transformer(s: Sketch, name: str, width: int, depth: int) -> Shapes:
    yield from _norm(f"{name}.norm", width)
    for end in ("proj_in", "proj_out"):
        yield from _linear(f"{name}.{end}", width, width) if s.linear else _conv(f"{name}.{end}", width, width, 1)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, inner in (("attn1", width), ("attn2", s.context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, inner)
            yield f"{block}.{attention}.to_v.weight", (width, inner)
            yield from _linear(f"{block}.{attention}.to_out.0", width, width)
        yield from _linear(f"{block}.ff.net.0.proj", width, 8 * width)
        yield from _linear(f"{block}.ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{block}.{norm}", width)


# --- VAE -------------------------------------------------------------------------------------------------------------


def vae_shapes(channels: tuple[int, ...], blocks: int = 2) -> Shapes:
    """Names, without prefix, and shapes of an LDM autoencoder."""
    first, last = channels[0], channels[-1]
    yield from _conv("encoder.conv_in", 3, first)
    width = first
    for level, out in enumerate(channels):
        for number in range(blocks):
            yield from _vae_residual(f"encoder.down.{level}.block.{number}", width, out)
            width = out
        if level + 1 < len(channels):
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from _vae_ends("encoder", last, last, 8)
    yield from _conv("decoder.conv_in", 4, last)
    yield from _vae_ends("decoder", last, first, 3)
    for level, out in reversed(list(enumerate(channels))):
        for number in range(blocks + 1):
            yield from _vae_residual(f"decoder.up.{level}.block.{number}", width, out)
            width = out
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", width, width)
    yield from _conv("quant_conv", 8, 8, 1)
    yield from _conv("post_quant_conv", 4, 4, 1)


def _vae_ends(side: str, mid: int, end: int, out: int) -> Shapes:
    yield from _vae_residual(f"{side}.mid.block_1", mid, mid)
    yield from _norm(f"{side}.mid.attn_1.norm", mid)
    for letter in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{side}.mid.attn_1.{letter}", mid, mid, 1)
    yield from _vae_residual(f"{side}.mid.block_2", mid, mid)
    yield from _norm(f"{side}.norm_out", end)
    yield from _conv(f"{side}.conv_out", end, out)


def _vae_residual(name: str, width: int, channels: int) -> Shapes:
    yield from _norm(f"{name}.norm1", width)
    yield from _conv(f"{name}.conv1", width, channels)
    yield from _norm(f"{name}.norm2", channels)
    yield from _conv(f"{name}.conv2", channels, channels)
    if width != channels:
        yield from _conv(f"{name}.nin_shortcut", width, channels, 1)


# --- text ------------------------------------------------------------------------------------------------------------


def clip_shapes(prefix: str, width: int = TEXT_WIDTH, layers: int = TEXT_LAYERS, inner: int = 2) -> Shapes:
    """Names and shapes of transformers' CLIP text tower; its MLPs are `inner` times as wide."""
    yield f"{prefix}embeddings.token_embedding.weight", (TOKENS, width)
    yield f"{prefix}embeddings.position_embedding.weight", (77, width)
    for number in range(layers):
        layer = f"{prefix}encoder.layers.{number}"
        for letter in ("q", "k", "v", "out"):
            yield from _linear(f"{layer}.self_attn.{letter}_proj", width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _norm(f"{layer}.layer_norm2", width)
        yield from _linear(f"{layer}.mlp.fc1", width, inner * width)
        yield from _linear(f"{layer}.mlp.fc2", inner * width, width)
    yield from _norm(f"{prefix}final_layer_norm", width)


def open_clip_shapes(prefix: str, width: int = TEXT_WIDTH, layers: int = TEXT_LAYERS, inner: int = 2) -> Shapes:
    """The same of open_clip's."""
    yield f"{prefix}token_embedding.weight", (TOKENS, width)
    yield f"{prefix}positional_embedding", (77, width)
    yield f"{prefix}text_projection", (width, width)
    yield f"{prefix}logit_scale", ()
    for number in range(layers):
        layer = f"{prefix}transformer.resblocks.{number}"
        yield f"{layer}.attn.in_proj_weight", (3 * width, width)
        yield f"{layer}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{layer}.attn.out_proj", width, width)
        yield from _norm(f"{layer}.ln_1", width)
        yield from _norm(f"{layer}.ln_2", width)
        yield from _linear(f"{layer}.mlp.c_fc", width, inner * width)
        yield from _linear(f"{layer}.mlp.c_proj", inner * width, width)
    yield from _norm(f"{prefix}ln_final", width)


# --- layers ----------------------------------------------------------------------------------------------------------


def _linear(name: str, width: int, out: int) -> Shapes:
    yield f"{name}.weight", (out, width)
    yield f"{name}.bias", (out,)


def _conv(name: str, width: int, out: int, window: int = 3) -> Shapes:
    yield f"{name}.weight", (out, width, window, window)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
