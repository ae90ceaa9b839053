"""Pictures drawn with the base as it is at the moment, by diffusers' schedulers in a loop of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_trainer.contracts import BaseModel, PlainError, TextStates
from lora_trainer.families.noise_schedule import BETA_END, BETA_START, TIMESTEPS

if TYPE_CHECKING:
    from PIL.Image import Image

LATENT_CELL = 8  # pixels
LATENT_CHANNELS = 4


def draw(
    base: BaseModel,
    prompts: Sequence[str],
    negative: str = "",
    *,
    size: int,
    steps: int = 20,
    guidance: float = 7.0,
    seed: int = 42,
    clip_skip: int = 1,
) -> list[Image]:
    """One picture of `size` x `size` pixels for each prompt.

    Each is drawn alone from its own generator on the CPU (`seed` plus its place), so that it depends neither on its
    neighbours nor on the device; the process's random state is not touched. Raises PlainError for a size that is no
    multiple of 8 pixels.
    """
    if size % LATENT_CELL:
        raise PlainError(f"Samples of {size} pixels were asked for, but sides are multiples of {LATENT_CELL}.")
    with torch.no_grad():
        return [
            _draw_one(base, prompt, negative, size, steps, guidance, seed + place, clip_skip)
            for place, prompt in enumerate(prompts)
        ]


def _draw_one(
    base: BaseModel, prompt: str, negative: str, size: int, steps: int, guidance: float, seed: int, clip_skip: int
) -> Image:
    guided = guidance != 1  # at 1 the negative prompt cancels out
    text = base.encode_text([negative, prompt] if guided else [prompt], clip_skip)
    return to_picture(base.decode_latents(draw_latents(base, text, size, steps, guidance, seed))[0])


def draw_latents(base: BaseModel, text: TextStates, size: int, steps: int, guidance: float, seed: int) -> Tensor:
    """One picture as latents (1, 4, h, w), drawn for one prompt, or for the second of two and away from the first."""
    guided = len(text.context) > 1
    scheduler = make_scheduler(base)
    scheduler.set_timesteps(steps, device=base.device)
    cells = size // LATENT_CELL
    noise = torch.randn((1, LATENT_CHANNELS, cells, cells), generator=torch.Generator().manual_seed(seed))
    latents = noise.to(base.device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        answer = _answer(base, scheduler.scale_model_input(latents, timestep), timestep, text, size)
        if guided:
            without, with_prompt = answer.chunk(2)
            answer = without + guidance * (with_prompt - without)
        latents = scheduler.step(answer, timestep, latents, return_dict=False)[0]
    return latents


def _answer(base: BaseModel, latents: Tensor, timestep: Tensor, text: TextStates, size: int) -> Tensor:
    """The UNet's float32 output for one latent picture and each row of `text`."""
    rows = len(text.context)
    sizes = torch.tensor([[size, size, 0, 0, size, size]] * rows, device=base.device)
    return base.predict(latents.expand(rows, -1, -1, -1), timestep.expand(rows), text, sizes).float()


def make_scheduler(base: BaseModel) -> Any:
    """diffusers' scheduler for this base: DPM-Solver++ (2M), or DDIM from pure noise on where the schedule ends so.

    DPM-Solver++ divides by the last alpha, which is 0 with zero terminal SNR; DDIM with trailing timesteps is what
    Lin et al. 2023 (arXiv 2305.08891, section 3.3) sample with.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    schedule: dict[str, Any] = {
        "num_train_timesteps": TIMESTEPS, "beta_start": BETA_START, "beta_end": BETA_END,
        "beta_schedule": "scaled_linear", "prediction_type": base.facts.prediction,
    }  # fmt: skip
    if base.facts.zero_terminal_snr:
        return DDIMScheduler(
            **schedule, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
        )  # fmt: skip
    return DPMSolverMultistepScheduler(**schedule)


def to_picture(pixels: Tensor) -> Image:
    """(3, H, W) in -1..1 to an RGB picture."""
    from PIL import Image

    values = ((pixels.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).numpy())
