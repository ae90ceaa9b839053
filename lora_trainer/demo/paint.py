"""Pictures from prompts with the embedded base's modules: deterministic DDIM with classifier-free guidance."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# (diffusers annotates unions of which a caller knows the one, and tuples of one where there are several)

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from lora_trainer.demo.nets import SCALE, new_scheduler


@torch.no_grad()
def paint(
    vae: AutoencoderKL,
    unet: nn.Module | UNet2DConditionModel,
    text_encoder: nn.Module,
    tokenize: Callable[[Sequence[str]], Tensor],
    prompts: Sequence[str],
    seed: int,
    steps: int = 20,
    guidance: float = 5.0,
    side: int = 128,
) -> list[Image.Image]:
    """One RGB picture of `side` pixels for each prompt; `steps` is UNet passes, `guidance` the CFG scale."""
    device = next(vae.parameters()).device
    text = text_encoder(tokenize([*prompts, *[""] * len(prompts)]).to(device))[0]
    scheduler = DDIMScheduler.from_config(new_scheduler().config, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    x = torch.randn(len(prompts), 4, side // 8, side // 8, generator=torch.Generator().manual_seed(seed)).to(device)
    for t in scheduler.timesteps:
        wanted, free = unet(torch.cat([x, x]), t, text).sample.chunk(2)
        x = scheduler.step(free + guidance * (wanted - free), t, x).prev_sample
    decoded = torch.cat([vae.decode(part / SCALE).sample for part in x.split(8)])
    pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p) for p in pixels]


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """The pictures side by side, `columns` in a row, with two pixels between them."""
    side = pictures[0].width
    rows = -(-len(pictures) // columns)
    sheet = Image.fromarray(np.full((rows * (side + 2), columns * (side + 2), 3), 255, np.uint8))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (side + 2), i // columns * (side + 2)))
    return sheet
