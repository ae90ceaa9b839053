"""The loss of an image model: noise the latents, ask the UNet, compare."""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_trainer.config.options import ObjectiveConfig
from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import BaseModel, Batch, Network, TextStates
from lora_trainer.train.memory import sent
from lora_trainer.train.noise import draw
from lora_trainer.train.objective import add_noise, error_map, huber_deltas, mean_error, target, weights


@dataclass(frozen=True)
class DiffusionLoss:
    """Weighted error of one micro-batch; implements `contracts.Loss`.

    All randomness is keyed by the seed and each sample's position in the stream, drawn on the CPU: the loss of a
    sample does not depend on its neighbours, on the device, on accumulation or on what ran before.
    """

    base: BaseModel
    seed: int
    clip_skip: int
    min_snr_gamma: float
    noise_offset: float
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    network: Network | None = None  # drops by sample; taken off where the base model's own output is to be kept

    def __call__(self, batch: Batch) -> Tensor:
        device = self.base.device
        drawn = draw(
            self.objective, self.seed, batch.positions, batch.latents.shape[1:],
            count=len(self.base.alphas_cumprod), offset=self.noise_offset,
        )  # fmt: skip
        latents, noise, timesteps = (sent(each, device) for each in (batch.latents, drawn.noise, drawn.timesteps))
        alphas = sent(self.base.alphas_cumprod[drawn.timesteps], device)
        noisy = add_noise(latents, sent(drawn.shown, device), alphas)
        sizes = sent(batch.sizes, device)
        if self.network is not None:
            self.network.drop_by([sample_seed(self.seed, position, "dropout") for position in batch.positions])
        text = self._text(batch.text, batch.captions)
        predicted = self.base.predict(noisy, timesteps, text, sizes)
        wanted = target(self.base.facts.prediction, latents, noise, alphas)
        mask = None if batch.mask is None else sent(batch.mask, device)
        error = weighed_error(
            self.base, self.objective, self.min_snr_gamma, predicted, wanted, timesteps=timesteps, mask=mask
        )
        loss = (error * sent(batch.weights, device)).mean()
        if self.objective.preserve > 0:
            loss = loss + self.objective.preserve * self._drift(batch, noisy, timesteps, sizes)
        return loss

    def _drift(self, batch: Batch, noisy: Tensor, timesteps: Tensor, sizes: Tensor) -> Tensor:
        """Squared distance from what the base model itself makes of the same noisy latents for the class's caption.

        In the whole picture, also where a mask keeps it from being learned: there too the base is to stay.

        ostris/ai-toolkit, "differential output preservation": the trigger word stands for its class there, and what
        the base makes of the class is to stay.
        """
        if self.network is None:
            raise RuntimeError("the base model's output cannot be kept without the network that is to be taken off")
        with torch.no_grad(), self.network.scaled(0):
            kept = self.base.predict(noisy, timesteps, self._class_text(batch), sizes)
        predicted = self.base.predict(noisy, timesteps, self._class_text(batch), sizes)
        error = (predicted.float() - kept.float()).square().mean(dim=(1, 2, 3))
        return (error * sent(batch.weights, error.device)).mean()

    def _class_text(self, batch: Batch) -> TextStates:
        return self._text(batch.class_text, batch.class_captions)

    def _text(self, states: TextStates | None, captions: Sequence[str]) -> TextStates:
        return sent_text(states, self.base.device) if states else self.base.encode_text(captions, self.clip_skip)


def weighed_error(
    base: BaseModel, objective: ObjectiveConfig, gamma: float, predicted: Tensor, wanted: Tensor,
    *, timesteps: Tensor, mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """Loss (B,) of each sample, of each cell as much as the mask says, weighted by its timestep."""
    alphas = sent(base.alphas_cumprod, timesteps.device)[timesteps]
    deltas = None
    if objective.loss != "l2":
        count = len(base.alphas_cumprod)
        deltas = huber_deltas(objective.huber_schedule, objective.huber_delta, timesteps, alphas, count)
    error = mean_error(error_map(objective.loss, predicted.float(), wanted, deltas), mask)
    factors = weights(objective.weighting, base.facts.prediction, alphas, gamma)
    return error if factors is None else error * factors


def sent_text(text: TextStates, device: torch.device) -> TextStates:
    """The states on the device, as `memory.sent` sends a tensor."""
    return TextStates(sent(text.context, device), None if text.pooled is None else sent(text.pooled, device))
