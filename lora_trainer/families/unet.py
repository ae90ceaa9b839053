"""The UNet: its structure read from a checkpoint's header, and diffusers' module over the lent tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from lora_trainer.contracts import LdmPlace, PlainError, TensorInfo
from lora_trainer.families.ldm_names import UNET_PREFIX, UnetNames
from lora_trainer.families.lending import Loan, check_names

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Heads = Callable[[int], int]  # number of attention heads by channels: the one thing that no tensor's shape tells

TIME_ID_WIDTH = 256  # sine and cosine values of each of SDXL's six sizes (sd_xl_base.yaml, ConcatTimestepEmbedderND)
TIME_IDS = 6


class UnetShape(NamedTuple):
    """What a header tells of a UNet."""

    names: UnetNames
    channels: tuple[int, ...]  # by level, from the widest
    depths: tuple[int, ...]  # transformer blocks of each transformer, by level; 0 where there is none
    mid_depth: int
    context: int  # width D of the text states
    vector: int  # width of the pooled text and sizes together; 0 if the model takes none
    linear: bool  # whether the transformers' projections are linear layers, not 1x1 convolutions
    in_channels: int
    out_channels: int


def read_unet(header: Mapping[str, TensorInfo]) -> UnetShape:
    """The structure of the UNet in an LDM checkpoint. Raises PlainError where it is not as known."""
    shapes = {key[len(UNET_PREFIX) :]: info.shape for key, info in header.items() if key.startswith(UNET_PREFIX)}
    names = UnetNames.of_ldm(shapes)
    firsts = [f"input_blocks.{1 + level * (names.layers + 1)}" for level in range(len(names.attention))]
    depths = tuple(_depth(shapes, f"{first}.1") for first in firsts)
    stem = next((f"{first}.1" for first, depth in zip(firsts, depths, strict=True) if depth), "middle_block.1")
    return UnetShape(
        names=names,
        channels=tuple(_shape(shapes, f"{first}.0.out_layers.3.weight")[0] for first in firsts),
        depths=depths,
        mid_depth=_depth(shapes, "middle_block.1"),
        context=_shape(shapes, f"{stem}.transformer_blocks.0.attn2.to_k.weight")[1],
        vector=_shape(shapes, "label_emb.0.0.weight")[1] if "label_emb.0.0.weight" in shapes else 0,
        linear=len(_shape(shapes, f"{stem}.proj_in.weight")) == 2,
        in_channels=_shape(shapes, "input_blocks.0.0.weight")[1],
        out_channels=_shape(shapes, "out.2.weight")[0],
    )


def unet_places(header: Mapping[str, TensorInfo], names: UnetNames) -> tuple[dict[str, LdmPlace], list[str]]:
    """Where each parameter stands, by diffusers' names; and the checkpoint's names that are none of a UNet's."""
    places: dict[str, LdmPlace] = {}
    unknown: list[str] = []
    for key in header:
        if key.startswith(UNET_PREFIX):
            try:
                places[names.to_diffusers(key[len(UNET_PREFIX) :])] = LdmPlace(key)
            except KeyError:
                unknown.append(key)
    return places, unknown


def empty_unet(shape: UnetShape, heads: Heads) -> UNet2DConditionModel:
    """diffusers' module of this structure on the `meta` device, without weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if shape.depths[-1] not in (0, shape.mid_depth):
        raise PlainError(
            f"The checkpoint's UNet has {shape.mid_depth} transformer blocks in the middle and {shape.depths[-1]} on "
            "the level above, as distilled models do; they are not supported, choose the full model."
        )
    with_text = [depth > 0 for depth in shape.depths]
    config: dict[str, Any] = {
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "block_out_channels": shape.channels,
        "layers_per_block": shape.names.layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if text else "DownBlock2D" for text in with_text),
        "up_block_types": tuple("CrossAttnUpBlock2D" if text else "UpBlock2D" for text in reversed(with_text)),
        # The last entry is the middle's too; levels without a transformer pass over theirs.
        "transformer_layers_per_block": (*(max(depth, 1) for depth in shape.depths[:-1]), shape.mid_depth),
        "cross_attention_dim": shape.context,
        "attention_head_dim": tuple(heads(channels) for channels in shape.channels),  # diffusers means: how many heads
        "use_linear_projection": shape.linear,
    }
    if shape.vector:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_ID_WIDTH,
            "projection_class_embeddings_input_dim": shape.vector,
        }
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def build_unet(loan: Loan, header: Mapping[str, TensorInfo], heads: Heads) -> UNet2DConditionModel:
    """A frozen UNet2DConditionModel over the lent tensors."""
    shape = read_unet(header)
    unet = empty_unet(shape, heads)
    places, unknown = unet_places(header, shape.names)
    check_names(unet, places, unknown, "UNet")
    for name, place in places.items():
        loan.place(unet, name, place.key)
    return unet.eval()


def repeated_blocks(unet: nn.Module) -> list[nn.Module]:
    """The blocks of which a UNet has many of a kind."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    return [module for module in unet.modules() if isinstance(module, (BasicTransformerBlock, ResnetBlock2D))]


def _depth(shapes: Mapping[str, tuple[int, ...]], stem: str) -> int:
    pattern = re.compile(re.escape(stem) + r"\.transformer_blocks\.(\d+)\.norm1\.weight$")
    return max((int(m[1]) + 1 for name in shapes if (m := pattern.match(name))), default=0)


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise PlainError(f"The checkpoint lacks {UNET_PREFIX}{name}, a weight of its UNet; choose a whole checkpoint.")
    return shapes[name]
