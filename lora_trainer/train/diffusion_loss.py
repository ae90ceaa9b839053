"""The loss of an image model: noise the latents, ask the UNet, compare."""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import BaseModel, Batch, Network
from lora_trainer.train.objective import add_noise, min_snr_weights, target


@dataclass(frozen=True)
class DiffusionLoss:
    """Weighted squared error of one micro-batch; implements `contracts.Loss`.

    All randomness is keyed by the seed and each sample's position in the stream, drawn on the CPU: the loss of a
    sample does not depend on its neighbours, on the device, on accumulation or on what ran before.
    """

    base: BaseModel
    seed: int
    clip_skip: int
    min_snr_gamma: float
    noise_offset: float
    network: Network

    def __call__(self, batch: Batch) -> Tensor:
        device = self.base.device
        noise, timesteps = self._draw(batch)
        latents, noise = batch.latents.to(device), noise.to(device)
        timesteps = timesteps.to(device)
        alphas = self.base.alphas_cumprod.to(device)[timesteps]
        self.network.drop_by([sample_seed(self.seed, position, "dropout") for position in batch.positions])
        text = batch.text or self.base.encode_text(batch.captions, self.clip_skip)
        predicted = self.base.predict(add_noise(latents, noise, alphas), timesteps, text, batch.sizes.to(device))
        prediction = self.base.facts.prediction
        error = (predicted.float() - target(prediction, latents, noise, alphas)).square().mean(dim=(1, 2, 3))
        if self.min_snr_gamma > 0:
            error = error * min_snr_weights(prediction, alphas, self.min_snr_gamma)
        return (error * batch.weights.to(device)).mean()

    def _draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noise (B, 4, h, w) and timesteps (B,), each row from its sample's own generator."""
        noises: list[Tensor] = []
        timesteps: list[Tensor] = []
        generator = torch.Generator("cpu")
        for position in batch.positions:
            generator.manual_seed(sample_seed(self.seed, position, "noise"))
            timesteps.append(torch.randint(len(self.base.alphas_cumprod), (1,), generator=generator))
            noise = torch.randn(batch.latents.shape[1:], generator=generator)
            if self.noise_offset > 0:
                noise = noise + self.noise_offset * torch.randn((noise.shape[0], 1, 1), generator=generator)
            noises.append(noise)
        return torch.stack(noises), torch.cat(timesteps)
