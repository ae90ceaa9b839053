"""The embedded base's three networks, in Stable Diffusion 1's layout and a two-hundredth of its size.

Everything a Stable Diffusion 1 loader takes for granted is kept: 4 latent channels at an eighth of the picture, 8 heads
everywhere, 1x1 convolutions around the attention, CLIP's vocabulary and 77 tokens. Only widths and depths are small.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# (diffusers annotates unions of which a caller knows the one, and tuples of one where there are several)

from __future__ import annotations

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

SCALE = 0.18215
"""What Stable Diffusion 1 multiplies VAE latents by before the UNet sees them (LDM v1-inference.yaml, scale_factor)."""

WIDTH = 64
"""Text width and UNet base width, channels. 49,408 tokens at this width are a third of the file."""

UNET_CHANNELS = (64, 64, 128, 64)
"""The LDM configuration allows whole multiples of the first width only."""

VAE_CHANNELS = (64, 64, 64, 64)
"""Twice the 32 groups of GroupNorm: with one channel a group the norms would erase how bright a picture is."""


def new_vae() -> AutoencoderKL:
    """Pictures (B, 3, H, W) in -1..1 to latents (B, 4, H/8, W/8) and back."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        norm_num_groups=32,
        layers_per_block=1,
        sample_size=128,
        block_out_channels=VAE_CHANNELS,
        scaling_factor=SCALE,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def new_unet() -> UNet2DConditionModel:
    """Noisy latents (B, 4, h, w), steps (B,) and text (B, 77, WIDTH) to the noise in them (B, 4, h, w)."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=UNET_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,  # diffusers reads this as the number of heads for this architecture
    )


def new_text_encoder() -> CLIPTextModel:
    """Token ids (B, 77) to text (B, 77, WIDTH), which is the last hidden state after its norm."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=WIDTH // 64,  # CLIP's rule: one head for every 64 channels
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )


def new_scheduler() -> DDPMScheduler:
    """Stable Diffusion 1's noise schedule (LDM v1-inference.yaml, linear_start and linear_end)."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
    )
