"""Names of UNet and VAE modules in LDM checkpoints and in diffusers: one table for both directions.

All functions work on a module's path, a parameter's name or the part of one after the checkpoint's prefix:
"input_blocks.1.1.proj_in.weight" and "down_blocks.0.attentions.0.proj_in.weight" are the same. In LDM the blocks are
numbered through, in diffusers they are sorted by level, so a little of the model's structure goes with the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from lora_trainer.contracts import PlainError

if TYPE_CHECKING:
    from torch import Tensor

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

# LDM's name of a module to diffusers'; each may be followed by ".weight" or the like.
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_RESIDUAL = {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_VAE_ENDS = {"norm_out": "conv_norm_out"}


class UnetNames(NamedTuple):
    """The structure that names of a UNet depend on."""

    layers: int  # residual blocks of a level, going down; one more going up
    attention: tuple[bool, ...]  # by level, from the widest: whether its blocks have transformers

    @classmethod
    def of_ldm(cls, names: Iterable[str]) -> UnetNames:
        """Read from LDM names without prefix. Raises PlainError where they are no such UNet's."""
        names = set(names)
        downs = sorted(int(m[1]) for n in names if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.weight$", n)))
        blocks = [int(m[1]) for n in names if (m := re.match(r"input_blocks\.(\d+)\.0\.", n))]
        layers = (downs[0] if downs else max(blocks, default=0) + 1) - 1
        stride = layers + 1
        levels = len(downs) + 1
        if layers < 1 or downs != [stride * (level + 1) for level in range(levels - 1)]:
            raise PlainError("The checkpoint's UNet has an unknown order of blocks; choose a Stable Diffusion model.")
        attention = tuple(f"input_blocks.{1 + level * stride}.1.norm.weight" in names for level in range(levels))
        return cls(layers, attention)

    @classmethod
    def of_diffusers(cls, names: Iterable[str]) -> UnetNames:
        """Read from diffusers' names."""
        names = set(names)
        resnets = [m for n in names if (m := re.match(r"down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight$", n))]
        if not resnets:
            raise PlainError("These weights hold no UNet in diffusers' names; choose a Stable Diffusion model.")
        levels = max(int(m[1]) for m in resnets) + 1
        attention = tuple(f"down_blocks.{level}.attentions.0.norm.weight" in names for level in range(levels))
        return cls(max(int(m[2]) for m in resnets) + 1, attention)

    def to_diffusers(self, name: str) -> str:
        """LDM's name, without the checkpoint's prefix, to diffusers'. KeyError for what no such UNet has."""
        if ended := _swap_head(name, _UNET_ENDS):
            return ended
        section, place, rest = _numbered(name)
        if section == "middle_block":
            return _unet_inner(f"mid_block.{'attentions' if place == 1 else 'resnets'}.{place // 2}", rest, name)
        slot, _, rest = rest.partition(".")
        level, index = divmod(place - (section == "input_blocks"), self.layers + 1)
        if not 0 <= level < len(self.attention):
            raise KeyError(name)
        block = f"{'down' if section == 'input_blocks' else 'up'}_blocks.{level}"
        if section == "input_blocks" and index == self.layers:
            return f"{block}.downsamplers.0.conv{_after(rest, 'op', name)}"
        if section == "output_blocks" and slot != "0" and rest.partition(".")[0] == "conv":
            return f"{block}.upsamplers.0.{rest}"
        return _unet_inner(f"{block}.{'resnets' if slot == '0' else 'attentions'}.{index}", rest, name)

    def to_ldm(self, name: str) -> str:
        """diffusers' name to LDM's, without the checkpoint's prefix. KeyError for what no such UNet has."""
        if ended := _swap_head(name, _reverse(_UNET_ENDS)):
            return ended
        match = re.match(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)$", name)
        if match is None:
            raise KeyError(name)
        way, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
        if kind == "resnets":
            rest = _swap_head(rest, _reverse(_UNET_RESIDUAL)) or _unknown(name)
        if way is None:
            return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
        first = level * (self.layers + 1) + (way == "down")
        section = "input_blocks" if way == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"{section}.{first + self.layers}.0.op{_after(rest, 'conv', name)}"
        if kind == "upsamplers":
            # After the residual block, and after the transformer where there is one; "up" counts from the deepest.
            return f"{section}.{first + self.layers}.{1 + self.attention[-1 - level]}.{rest}"
        return f"{section}.{first + index}.{0 if kind == 'resnets' else 1}.{rest}"


class VaeNames(NamedTuple):
    """The structure that names of an autoencoder depend on."""

    levels: int

    @classmethod
    def of_ldm(cls, names: Iterable[str]) -> VaeNames:
        """Read from LDM names without prefix. Raises PlainError where they are no such autoencoder's."""
        return cls(_levels(names, r"encoder\.down\.(\d+)\."))

    @classmethod
    def of_diffusers(cls, names: Iterable[str]) -> VaeNames:
        """Read from diffusers' names."""
        return cls(_levels(names, r"encoder\.down_blocks\.(\d+)\."))

    def to_diffusers(self, name: str) -> str:
        """LDM's name, without the checkpoint's prefix, to diffusers'. KeyError for what no autoencoder has."""
        side, _, rest = name.partition(".")
        if match := re.match(r"mid\.block_(\d)\.(.+)$", rest):
            inner = _swap_head(match[2], _VAE_RESIDUAL) or match[2]
            return f"{side}.mid_block.resnets.{int(match[1]) - 1}.{inner}"
        if match := re.match(r"mid\.attn_1\.(.+)$", rest):
            return f"{side}.mid_block.attentions.0.{_swap_head(match[1], _VAE_ATTENTION) or _unknown(name)}"
        if match := re.match(r"(down|up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample)\.(.+)$", rest):
            way, level = match[1], self._level(match[1], int(match[2]))
            if match[3] is None:
                return f"{side}.{way}_blocks.{level}.{way}samplers.0.{match[4]}"
            inner = _swap_head(match[4], _VAE_RESIDUAL) or match[4]
            return f"{side}.{way}_blocks.{level}.resnets.{match[3]}.{inner}"
        return self._end(side, rest, _VAE_ENDS, name)

    def to_ldm(self, name: str) -> str:
        """diffusers' name to LDM's, without the checkpoint's prefix. KeyError for what no autoencoder has."""
        side, _, rest = name.partition(".")
        if match := re.match(r"mid_block\.resnets\.(\d)\.(.+)$", rest):
            inner = _swap_head(match[2], _reverse(_VAE_RESIDUAL)) or match[2]
            return f"{side}.mid.block_{int(match[1]) + 1}.{inner}"
        if match := re.match(r"mid_block\.attentions\.0\.(.+)$", rest):
            return f"{side}.mid.attn_1.{_swap_head(match[1], _reverse(_VAE_ATTENTION)) or _unknown(name)}"
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)samplers\.0)\.(.+)$", rest):
            way, level = match[1], self._level(match[1], int(match[2]))
            if match[3] is None:
                return f"{side}.{way}.{level}.{way}sample.{match[4]}"
            inner = _swap_head(match[4], _reverse(_VAE_RESIDUAL)) or match[4]
            return f"{side}.{way}.{level}.block.{match[3]}.{inner}"
        return self._end(side, rest, _reverse(_VAE_ENDS), name)

    def _level(self, way: str, level: int) -> int:
        """LDM numbers both ways from the picture, diffusers in the order of the computation."""
        return self.levels - 1 - level if way == "up" else level

    def _end(self, side: str, rest: str, table: Mapping[str, str], name: str) -> str:
        if side in ("quant_conv", "post_quant_conv"):
            return name
        if side in ("encoder", "decoder") and rest.partition(".")[0] in ("conv_in", "conv_out", *table):
            return f"{side}.{_swap_head(rest, table) or rest}"
        raise KeyError(name)


def is_vae_attention(diffusers_name: str) -> bool:
    """Whether this is a weight that LDM keeps as a 1x1 convolution and diffusers as a linear layer."""
    return re.search(r"\.mid_block\.attentions\.0\.to_\w+(\.0)?\.weight$", diffusers_name) is not None


def unet_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a diffusers UNet under full LDM names; the tensors are the same."""
    names = UnetNames.of_diffusers(state)
    return {UNET_PREFIX + names.to_ldm(name): tensor for name, tensor in state.items()}


def vae_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a diffusers autoencoder under full LDM names; the tensors are the same, or views of them."""
    names = VaeNames.of_diffusers(state)
    return {
        VAE_PREFIX + names.to_ldm(name): tensor[:, :, None, None] if is_vae_attention(name) else tensor
        for name, tensor in state.items()
    }


# --- pieces of names -------------------------------------------------------------------------------------------------


def _unet_inner(place: str, rest: str, name: str) -> str:
    if ".resnets." in place:
        rest = _swap_head(rest, _UNET_RESIDUAL) or _unknown(name)
    return f"{place}.{rest}"


def _numbered(name: str) -> tuple[str, int, str]:
    match = re.match(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.+)$", name)
    if match is None:
        raise KeyError(name)
    return match[1], int(match[2]), match[3]


def _swap_head(name: str, table: Mapping[str, str]) -> str | None:
    """`name` with its leading components replaced by the table, or None."""
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return None


def _after(rest: str, head: str, name: str) -> str:
    if rest != head and not rest.startswith(head + "."):
        raise KeyError(name)
    return rest[len(head) :]


def _reverse(table: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}


def _levels(names: Iterable[str], pattern: str) -> int:
    levels = max((int(m[1]) + 1 for n in names if (m := re.match(pattern, n))), default=0)
    if levels == 0:
        raise PlainError("The checkpoint holds no VAE that is known; choose a whole Stable Diffusion checkpoint.")
    return levels


def _unknown(name: str) -> str:
    raise KeyError(name)
