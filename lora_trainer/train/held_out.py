"""The loss on images that are not trained on, with the same noise and timesteps each time."""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import BaseModel, Batch, Batches, Network, TextStates
from lora_trainer.train.objective import add_noise, mean_error, target

SEED = 0  # of every run alike, so that runs with other seeds can be compared


@dataclass(frozen=True)
class HeldOut:
    """Squared error on held-out images; implements `contracts.Validation`.

    Unweighted, whatever the run's objective is, so that runs with different ones can be compared too. The timesteps
    are cut into `ranges` equal parts, and each image is looked at once in each, at a timestep drawn for good.
    """

    base: BaseModel
    network: Network
    batches: Batches[Batch]  # one image each; the first `images` of them are each image once
    images: Callable[[], int]  # known when the images have been read
    clip_skip: int
    ranges: int

    @property
    def count(self) -> int:
        """Measurements that make up one look."""
        return self.images()

    def measure(self, index: int) -> list[float]:
        """Loss of image `index` in each range of timesteps, from little noise to much."""
        batch = self.batches(index)
        device, ranges = self.base.device, self.ranges
        latents = batch.latents.repeat(ranges, 1, 1, 1)
        noises: list[torch.Tensor] = []
        timesteps: list[torch.Tensor] = []
        generator = torch.Generator("cpu")
        width = len(self.base.alphas_cumprod) / ranges
        for place in range(ranges):
            generator.manual_seed(sample_seed(SEED, index * ranges + place, "validation"))
            timesteps.append((place * width + width * torch.rand(1, generator=generator)).long())
            noises.append(torch.randn(batch.latents.shape[1:], generator=generator))
        latents, noise, t = latents.to(device), torch.stack(noises).to(device), torch.cat(timesteps).to(device)
        alphas = self.base.alphas_cumprod.to(device)[t]
        with torch.no_grad(), self.network.scaled(1):  # dropout rests
            text = _repeated(batch.text or self.base.encode_text(batch.captions, self.clip_skip), ranges)
            sizes = batch.sizes.to(device).repeat(ranges, 1)
            predicted = self.base.predict(add_noise(latents, noise, alphas), t, text, sizes)
            wanted = target(self.base.facts.prediction, latents, noise, alphas)
            mask = None if batch.mask is None else batch.mask.to(device).repeat(ranges, 1, 1, 1)
            error = mean_error((predicted.float() - wanted).square(), mask)
        return cast("list[float]", error.tolist())


def _repeated(text: TextStates, times: int) -> TextStates:
    pooled = None if text.pooled is None else text.pooled.repeat(times, 1)
    return TextStates(text.context.repeat(times, 1, 1), pooled)
