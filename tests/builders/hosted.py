"""Checkpoints that a real WebUI loads: slim UNet and VAE, and the text encoders whose sizes the WebUI insists on.

CLIP-L is built by the WebUI from its published configuration, whatever the checkpoint says; an open_clip tower is
built by its name, so the smallest of open_clip's takes the place of ViT-H and ViT-bigG. The file of settings beside
the checkpoint (same stem, `.yaml`) tells the WebUI the slim widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.builders.slim import (
    TIME_IDS,
    VAE_CHANNELS,
    Shapes,
    Sketch,
    clip_shapes,
    open_clip_shapes,
    unet_shapes,
    vae_shapes,
)

Kind = Literal["sd1", "sd2", "sdxl"]

CLIP_L = {"width": 768, "layers": 12, "inner": 4}  # openai/clip-vit-large-patch14, config.json
OPEN_CLIP = {"width": 512, "layers": 12, "inner": 4}  # open_clip model_configs/ViT-B-32.json
OPEN_CLIP_NAME = "ViT-B-32"
CLIP_WIDTH, OPEN_WIDTH = CLIP_L["width"], OPEN_CLIP["width"]


@dataclass(frozen=True)
class Slim:
    """A UNet of the kind's structure, as narrow as its 32 groups and heads of 64 allow."""

    sketch: Sketch
    heads: dict[str, int]  # as the WebUI's configuration names them


SLIM: dict[Kind, Slim] = {
    "sd1": Slim(Sketch((32, 64, 64, 64), (1, 1, 1, 0), 1, False, CLIP_WIDTH, 0), {"num_heads": 8}),
    "sd2": Slim(Sketch((64, 128, 64, 64), (1, 1, 1, 0), 1, True, OPEN_WIDTH, 0), {"num_head_channels": 64}),
    "sdxl": Slim(
        Sketch((64, 128, 64), (0, 1, 2), 2, True, CLIP_WIDTH + OPEN_WIDTH, OPEN_WIDTH + TIME_IDS),
        {"num_head_channels": 64},
    ),
}


def write_hosted(
    path: Path, kind: Kind, seed: int = 0, *, v_pred: bool = False, dtype: torch.dtype = torch.float16
) -> Path:
    """Write checkpoint and settings; returns the checkpoint's path. Half precision, for half the time on the disk."""
    tensors = hosted_checkpoint(kind, seed, v_pred=v_pred)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, str(path))
    path.with_suffix(".yaml").write_text(yaml.safe_dump(settings(kind, v_pred)), encoding="utf-8")
    return path


def hosted_checkpoint(kind: Kind, seed: int, *, v_pred: bool = False) -> dict[str, Tensor]:
    """Random tensors of a whole checkpoint, none constant; the same seed gives the same."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _fill(name, shape, generator) for name, shape in _shapes(kind)}
    if v_pred and kind == "sd2":
        tensors["model.diffusion_model.out.2.bias"] -= 3  # what an unmarked SD2 is known by: see families/prediction
    if v_pred and kind == "sdxl":
        tensors |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    return tensors


def write_inpainting(path: Path, seed: int = 0) -> Path:
    """An inpainting model of SD1's structure: its UNet is given a mask and a masked picture too, 9 channels in all."""
    tensors, described = hosted_checkpoint("sd1", seed), settings("sd1")
    entry = tensors["model.diffusion_model.input_blocks.0.0.weight"]
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = entry.repeat(1, 3, 1, 1)[:, :9].contiguous()
    model = described["model"]
    model["target"] = "ldm.models.diffusion.ddpm.LatentInpaintDiffusion"
    model["params"] |= {"conditioning_key": "hybrid", "finetune_keys": None}
    model["params"]["unet_config"]["params"]["in_channels"] = 9
    return _written(path, tensors, described)


def write_refiner(path: Path, seed: int = 0) -> Path:
    """A refiner as SDXL's: open_clip's text encoder alone, where the base has two."""
    tensors, described = hosted_checkpoint("sdxl", seed), settings("sdxl")
    first, second = "conditioner.embedders.0.", "conditioner.embedders.1."
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(first)}
    described["model"]["params"]["conditioner_config"]["params"]["emb_models"].pop(0)
    return _written(path, {name.replace(second, first): tensor for name, tensor in kept.items()}, described)


def _written(path: Path, tensors: dict[str, Tensor], described: dict[str, Any]) -> Path:
    save_file({name: tensor.half() for name, tensor in tensors.items()}, str(path))
    path.with_suffix(".yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    return path


def settings(kind: Kind, v_pred: bool = False) -> dict[str, Any]:
    """What the WebUI builds the model by; the schedule and names are those of the published configurations."""
    if kind == "sdxl":
        return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": _sdxl(v_pred)}}
    embedder = "FrozenCLIPEmbedder" if kind == "sd1" else "FrozenOpenCLIPEmbedder"
    text = {"arch": OPEN_CLIP_NAME, "freeze": True, "layer": "penultimate"} if kind == "sd2" else {}
    params = {
        "linear_start": 0.00085, "linear_end": 0.0120, "timesteps": 1000, "num_timesteps_cond": 1, "log_every_t": 200,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 64, "channels": 4, "use_ema": False,
        "cond_stage_trainable": False, "conditioning_key": "crossattn", "monitor": "val/loss_simple_ema",
        "scale_factor": 0.18215, "parameterization": "v" if v_pred else "eps",
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": _unet(kind)},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": _vae()},
        "cond_stage_config": {"target": f"ldm.modules.encoders.modules.{embedder}", "params": text},
    }  # fmt: skip
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _unet(kind: Kind) -> dict[str, Any]:
    sketch, heads = SLIM[kind].sketch, SLIM[kind].heads
    size = {} if kind == "sdxl" else {"image_size": 32}  # unused; sgm's UNet does not know the word
    return {
        "in_channels": 4, "out_channels": 4, "model_channels": sketch.channels[0],
        "attention_resolutions": [2**level for level, depth in enumerate(sketch.depths) if depth],
        "num_res_blocks": sketch.blocks, "channel_mult": [width // sketch.channels[0] for width in sketch.channels],
        "use_spatial_transformer": True, "use_linear_in_transformer": sketch.linear, "context_dim": sketch.context,
        "transformer_depth": list(sketch.depths) if kind == "sdxl" else 1, "use_checkpoint": False, "legacy": False,
        **heads, **size,
    }  # fmt: skip


def _vae() -> dict[str, Any]:
    first = VAE_CHANNELS[0]
    return {
        "embed_dim": 4, "monitor": "val/rec_loss", "lossconfig": {"target": "torch.nn.Identity"},
        "ddconfig": {
            "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": first,
            "ch_mult": [width // first for width in VAE_CHANNELS], "num_res_blocks": 2, "attn_resolutions": [],
            "dropout": 0.0,
        },
    }  # fmt: skip


def _sdxl(v_pred: bool) -> dict[str, Any]:
    modules = "sgm.modules.diffusionmodules"
    scaling, weighting = ("VScaling", "EpsWeighting") if v_pred else ("EpsScaling", "EpsWeighting")
    sizes = [
        {"input_key": key, "target": "sgm.modules.encoders.modules.ConcatTimestepEmbedderND", "params": {"outdim": 256}}
        for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    ]
    texts = [
        ("FrozenCLIPEmbedder", {"layer": "hidden", "layer_idx": 11}),
        (
            "FrozenOpenCLIPEmbedder2",
            {"arch": OPEN_CLIP_NAME, "version": "none", "freeze": True, "layer": "penultimate",
             "always_return_pooled": True, "legacy": False},
        ),
    ]  # fmt: skip
    embedders = [
        {"input_key": "txt", "target": f"sgm.modules.encoders.modules.{name}", "params": params}
        for name, params in texts
    ]
    return {
        "scale_factor": 0.13025,
        "disable_first_stage_autocast": True,
        "denoiser_config": {
            "target": f"{modules}.denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": 1000,
                "weighting_config": {"target": f"{modules}.denoiser_weighting.{weighting}"},
                "scaling_config": {"target": f"{modules}.denoiser_scaling.{scaling}"},
                "discretization_config": {"target": f"{modules}.discretizer.LegacyDDPMDiscretization"},
            },
        },
        "network_config": {
            "target": f"{modules}.openaimodel.UNetModel",
            "params": {**_unet("sdxl"), "adm_in_channels": SLIM["sdxl"].sketch.classes, "num_classes": "sequential"},
        },
        "conditioner_config": {
            "target": "sgm.modules.GeneralConditioner",
            "params": {"emb_models": [{**each, "is_trainable": False} for each in embedders + sizes]},
        },
        "first_stage_config": {"target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper", "params": _vae()},
    }


def _shapes(kind: Kind) -> Shapes:
    for name, shape in unet_shapes(SLIM[kind].sketch):
        yield f"model.diffusion_model.{name}", shape
    for name, shape in vae_shapes(VAE_CHANNELS):
        yield f"first_stage_model.{name}", shape
    if kind == "sd1":
        yield from clip_shapes("cond_stage_model.transformer.text_model.", **CLIP_L)
    elif kind == "sd2":
        yield from open_clip_shapes("cond_stage_model.model.", **OPEN_CLIP)
    else:
        yield from clip_shapes("conditioner.embedders.0.transformer.text_model.", **CLIP_L)
        yield from open_clip_shapes("conditioner.embedders.1.model.", **OPEN_CLIP)


def _fill(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Matrices that keep the scale of what passes; norms near one; biases small, and none zero."""
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values * (0.5 if "embedding" in name else torch.Size(shape[1:]).numel() ** -0.5)
    return values * 0.05 + (1.0 if name.endswith("weight") else 0.0)
