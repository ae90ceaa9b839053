"""Ways to compute the same with less memory that a base model's modules have: each turned on, none ever off again."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

# Sides of the VAE's tiles in pixels, the larger first: at 512 a tile is what the SD 1 models' VAE was trained on.
TILES = (512, 256)
_LATENT_CELL = 8  # pixels


def recompute_activations(module: nn.Module) -> bool:
    """Compute the activations of a part anew in the backward pass; False where that is so already, or it cannot.

    diffusers and transformers do it in training mode only; the mode changes nothing else, since none of the parts has
    dropout (a language model's is set to nothing when it is loaded) or batch statistics.
    """
    part = cast(Any, module)
    of_transformers = hasattr(part, "enable_input_require_grads")
    if _recomputes(part) or (of_transformers and not part.supports_gradient_checkpointing):
        return False
    if of_transformers:
        _in_transformers(part)
    else:
        part.enable_gradient_checkpointing()
    module.train()
    return True


def _in_transformers(model: Any) -> None:
    """Unless told otherwise, torch and transformers lose the gradients in layers of which no input wants one, as those
    over frozen embeddings are: an adapter there would never learn. Old releases cannot be told, so an input wants one.
    """
    model.enable_input_require_grads()
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except TypeError:  # before 4.35
        model.gradient_checkpointing_enable()


def _recomputes(part: Any) -> bool:
    """transformers 5 has another name for it."""
    told = getattr(part, "is_activation_checkpointing", False) or getattr(part, "is_gradient_checkpointing", False)
    return bool(told) or any(getattr(inner, "gradient_checkpointing", False) for inner in part.modules())


def slice_attention(unet: nn.Module) -> bool:
    """Compute the attention one head at a time; False where that is so already, or the part cannot."""
    if getattr(unet, "attention_sliced", False) or not hasattr(unet, "set_attention_slice"):
        return False
    cast(Any, unet).set_attention_slice("max")
    cast(Any, unet).attention_sliced = True
    return True


def work_in_tiles(vae: Any) -> int:
    """Let the VAE work on overlapping tiles, smaller ones at each call; their side in pixels, 0 at the end."""
    side = next((tile for tile in TILES if not vae.use_tiling or tile < vae.tile_sample_min_size), 0)
    if side:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // _LATENT_CELL
    return side


def attention_keeps_scores(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's attention keeps a score for each pair of cells on this device until the backward pass.

    It is asked, not looked up: which kernel is taken hangs on torch's version, the device and the type.
    """
    cells, width = 64, 32
    given = torch.zeros(1, 1, cells, width, device=device, dtype=dtype, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() if tensor.shape[-2:] == (cells, cells) else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.scaled_dot_product_attention(given, given, given)
    return any(kept)
