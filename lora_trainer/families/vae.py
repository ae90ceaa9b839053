"""The autoencoder: its structure read from a checkpoint's header, and diffusers' module over the lent tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lora_trainer.contracts import LdmPlace, PlainError, TensorInfo
from lora_trainer.families.ldm_names import VAE_PREFIX, VaeNames, is_vae_attention
from lora_trainer.families.lending import Loan, check_names

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch import Tensor


class VaeShape(NamedTuple):
    """What a header tells of an autoencoder."""

    names: VaeNames
    channels: tuple[int, ...]  # by level, from the picture
    layers: int  # residual blocks of a level of the encoder
    latent_channels: int


def read_vae(header: Mapping[str, TensorInfo]) -> VaeShape:
    """The structure of the autoencoder in an LDM checkpoint. Raises PlainError where it is not as known."""
    shapes = {key[len(VAE_PREFIX) :]: info.shape for key, info in header.items() if key.startswith(VAE_PREFIX)}
    names = VaeNames.of_ldm(shapes)
    wanted = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(names.levels)]
    for name in (*wanted, "decoder.conv_in.weight"):
        if name not in shapes:
            raise PlainError(f"The checkpoint lacks {VAE_PREFIX}{name}, of its VAE; choose a whole checkpoint.")
    blocks = [m for name in shapes if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight$", name))]
    return VaeShape(
        names=names,
        channels=tuple(shapes[name][0] for name in wanted),
        layers=max(int(match[1]) for match in blocks) + 1,
        latent_channels=shapes["decoder.conv_in.weight"][1],
    )


def vae_places(header: Mapping[str, TensorInfo], names: VaeNames) -> tuple[dict[str, LdmPlace], list[str]]:
    """Where each parameter stands, by diffusers' names; and the checkpoint's names that are none of a VAE's."""
    places: dict[str, LdmPlace] = {}
    unknown: list[str] = []
    for key in header:
        # Some files keep what the VAE was trained with: its loss, and a running average of the weights.
        if key.startswith(VAE_PREFIX) and not key.startswith((VAE_PREFIX + "loss.", VAE_PREFIX + "model_ema.")):
            try:
                places[names.to_diffusers(key[len(VAE_PREFIX) :])] = LdmPlace(key)
            except KeyError:
                unknown.append(key)
    return places, unknown


def empty_vae(shape: VaeShape) -> AutoencoderKL:
    """diffusers' module of this structure on the `meta` device, without weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(shape.channels)
    config: dict[str, Any] = {  # whose types diffusers declares as tuples of one
        "block_out_channels": shape.channels,
        "layers_per_block": shape.layers,
        "latent_channels": shape.latent_channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    with torch.device("meta"):
        return AutoencoderKL(**config)


def build_vae(loan: Loan, header: Mapping[str, TensorInfo]) -> AutoencoderKL:
    """A frozen AutoencoderKL over the lent tensors; give it a loan in float32, for in fp16 SDXL's overflows."""
    shape = read_vae(header)
    vae = empty_vae(shape)
    places, unknown = vae_places(header, shape.names)
    check_names(vae, places, unknown, "VAE")
    for name, place in places.items():
        # LDM computes the attention with 1x1 convolutions
        loan.place(vae, name, place.key, _without_window if is_vae_attention(name) else None)
    _decode_as_given(vae.decoder)
    return vae.eval()


def _decode_as_given(decoder: Any) -> None:
    """Let the decoder keep the precision of what it is given.

    Older versions of diffusers narrow the picture to the dtype in which the blocks are stored, which for a lent VAE is
    not the one that they compute in.
    """

    def forward(sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        sample = decoder.mid_block(decoder.conv_in(sample), latent_embeds)
        for block in decoder.up_blocks:
            sample = block(sample, latent_embeds)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(sample)))

    decoder.forward = forward


def _without_window(weight: Tensor) -> Tensor:
    """(out, in, 1, 1) to (out, in) on the same storage; a bias, and newer files' matrices, as they are."""
    return weight[:, :, 0, 0] if weight.ndim == 4 else weight
