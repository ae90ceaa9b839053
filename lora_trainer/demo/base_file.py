"""Writes the embedded base as Stable Diffusion 1 checkpoints are: one safetensors file in LDM names and its `.yaml`."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# (diffusers annotates unions of which a caller knows the one, and tuples of one where there are several)

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_trainer.demo.nets import SCALE, UNET_CHANNELS, VAE_CHANNELS, WIDTH
from lora_trainer.families.ldm_names import unet_to_ldm, vae_to_ldm


def ldm_tensors(vae: AutoencoderKL, unet: UNet2DConditionModel, text: nn.Module) -> dict[str, Tensor]:
    """All parameters under the checkpoint's names, in fp16."""
    tensors = {**unet_to_ldm(unet.state_dict()), **vae_to_ldm(vae.state_dict())}
    for key, value in text.state_dict().items():
        if "position_ids" not in key:
            tensors["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = value
    return {k: v.detach().cpu().half().contiguous() for k, v in tensors.items()}


def configuration() -> str:
    """The LDM v1-inference configuration with this base's widths, as text."""
    base, multiples = UNET_CHANNELS[0], [c // UNET_CHANNELS[0] for c in UNET_CHANNELS]
    vae_multiples = [c // VAE_CHANNELS[0] for c in VAE_CHANNELS]
    return f"""model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: 16
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {SCALE}
    use_ema: false

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 16
        in_channels: 4
        out_channels: 4
        model_channels: {base}
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 1
        channel_mult: {multiples}
        num_heads: 8
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {WIDTH}
        use_checkpoint: false
        legacy: false

    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 128
          in_channels: 3
          out_ch: 3
          ch: {VAE_CHANNELS[0]}
          ch_mult: {vae_multiples}
          num_res_blocks: 1
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity

    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: openai/clip-vit-large-patch14
        width: {WIDTH}
        layers: 2
"""


def write_base(folder: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, text: nn.Module) -> Path:
    """Writes `scenes.safetensors` (fp16) and `scenes.yaml`; returns the checkpoint's path."""
    path = folder / "scenes.safetensors"
    part = path.with_suffix(".part")
    save_file(ldm_tensors(vae, unet, text), part, metadata={"format": "pt", "modelspec.title": "scenes"})
    part.replace(path)
    path.with_suffix(".yaml").write_text(configuration())
    return path


def check(vae: nn.Module, unet: nn.Module, text: nn.Module) -> None:
    """Fails where a tensor came out constant or not finite: a part that never learned."""
    for module in (vae, unet, text):
        for name, p in module.named_parameters():
            if not torch.isfinite(p).all() or (p.numel() > 1 and p.float().std() == 0):
                raise ValueError(f"{type(module).__name__} {name} is constant or not finite")
