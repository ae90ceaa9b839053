"""Where encoded images are kept, where that is left open: in memory, while they are small beside what is free."""

from __future__ import annotations

from dataclasses import replace

import torch

from lora_trainer.config.options import DataConfig
from lora_trainer.jobs.planned import Choice
from lora_trainer.train.memory import in_gigabytes, room

# A quarter of what is free: the step, the samples and the person's other programs want theirs as well.
SHARE = 0.25
# A picture's latents: 4 channels of float32 for each 8 x 8 pixels.
_BYTES_A_PIXEL = 4 * 4 / 64


def latent_bytes(config: DataConfig, images: int, resolution: int, *, pairs: bool = False) -> int:
    """Bytes of all encoded images at most: no bucket has a larger area than the square of the resolution."""
    kept = images * (2 if config.flip else 1) * (2 if pairs else 1)
    return round(kept * resolution**2 * _BYTES_A_PIXEL)


def settled_cache(
    config: DataConfig, images: int, resolution: int, *, pairs: bool = False
) -> tuple[DataConfig, Choice]:
    """The options with a place for encoded images, and why it was chosen; nothing changes where one is given.

    What is told of the memory changes only with the choice: the same plan twice is to read the same.
    """
    size = latent_bytes(config, images, resolution, pairs=pairs)
    told = in_gigabytes(size)
    if config.cache != "auto":
        places = {"memory": f"in memory, {told}", "disk": f"on disk, {told}", "none": "encoded anew at each step"}
        return config, Choice("encoded images", places[config.cache], "asked for")
    there = room(torch.device("cpu"))
    if there is None or size <= there.free * SHARE:
        reason = "less than a quarter of what is free" if there else "how much is free the system does not say"
        return replace(config, cache="memory"), Choice("encoded images", f"in memory, {told}", reason)
    reason = f"only {in_gigabytes(there.free)} of memory are free, of which they may take a quarter"
    return replace(config, cache="disk"), Choice("encoded images", f"on disk, {told}", reason)
