"""The losses of a slider: the network is trained at weight 1 one way and at weight -1 the other, in one pass.

Both after Gandikota et al. 2023, "Concept Sliders" (arXiv 2311.12092). The rows of one forward have both weights,
which `Network.weigh_by` keeps to for the backward pass too, where gradient checkpointing computes them again.
"""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_trainer.config.options import ObjectiveConfig, SliderConfig
from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import BaseModel, Batch, Network, TextStates
from lora_trainer.train.diffusion_loss import sent_text, weighed_error
from lora_trainer.train.memory import sent
from lora_trainer.train.noise import Drawn, draw
from lora_trainer.train.objective import add_noise, target

EncodePrompts = Callable[[Sequence[str]], TextStates]


def worded(kept: str, prompt: str) -> str:
    """The prompt with the kept word in front of it, as rohitgandikota/sliders puts its attributes."""
    return f"{kept} {prompt}".strip()


def prompts_of(slider: SliderConfig) -> list[str]:
    """Every prompt that a slider of prompts asks the base with."""
    kept = slider.keep or ("",)
    return [worded(word, prompt) for word in kept for prompt in (slider.target, slider.positive, slider.negative)]


@dataclass(frozen=True)
class SliderLoss:
    """What both kinds have; implements `contracts.Loss` with one of them.

    All randomness is keyed by the seed and each sample's position in the stream, as in `DiffusionLoss`.
    """

    base: BaseModel
    network: Network
    seed: int
    min_snr_gamma: float
    noise_offset: float
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def drawn(self, batch: Batch) -> Drawn:
        """Timesteps and noise of the batch, on the base's device."""
        found = draw(
            self.objective, self.seed, batch.positions, batch.latents.shape[1:],
            count=len(self.base.alphas_cumprod), offset=self.noise_offset,
        )  # fmt: skip
        return Drawn(*(sent(each, self.base.device) for each in found))

    def both_ways(
        self, batch: Batch, noisy: Tensor, timesteps: Tensor, text: TextStates, wanted: Tensor
    ) -> Tensor:
        """Mean error of the network at weight 1 on the first half of the rows, at -1 on the second.

        `noisy` and `wanted` (2 B, 4, h, w), `text` of 2 B captions, `timesteps` (B,) of both halves.
        """
        count, device = len(batch.positions), self.base.device
        seeds = [sample_seed(self.seed, position, "dropout") for position in batch.positions]
        self.network.drop_by(seeds * 2)
        self.network.weigh_by([1.0] * count + [-1.0] * count)
        twice = timesteps.repeat(2)
        predicted = self.base.predict(noisy, twice, text, sent(batch.sizes, device).repeat(2, 1))
        mask = None if batch.mask is None else sent(batch.mask, device).repeat(2, 1, 1, 1)
        error = weighed_error(
            self.base, self.objective, self.min_snr_gamma, predicted, wanted, timesteps=twice, mask=mask
        )
        return (error * sent(batch.weights, device).repeat(2)).mean()


@dataclass(frozen=True)
class PromptSlider(SliderLoss):
    """The difference of two prompts, as the base model itself has it.

    eps(x_t, target; weight 1) is to become base(target) + strength (base(positive) - base(negative)), and at weight -1
    the same with a minus (section 4; the mirror is ostris/ai-toolkit's, ConceptSliderTrainer). Where the
    paper sums over the words to keep, each sample has one of them in turn, as in its authors' code. The formula is the
    same for a model that predicts v, which for a given x_t is a straight line of eps.
    """

    slider: SliderConfig = field(default_factory=SliderConfig)
    encoded: EncodePrompts | None = None  # of `prompts_of`, by a frozen text encoder

    def __call__(self, batch: Batch) -> Tensor:
        drawn = self.drawn(batch)
        timesteps, device = drawn.timesteps, drawn.timesteps.device
        alphas = sent(self.base.alphas_cumprod, device)[timesteps]
        noisy = add_noise(sent(batch.latents, device), drawn.shown, alphas)
        kept = self.slider.keep or ("",)
        words = [kept[position % len(kept)] for position in batch.positions]
        target, positive, negative = (
            [worded(word, prompt) for word in words]
            for prompt in (self.slider.target, self.slider.positive, self.slider.negative)
        )
        sizes = sent(batch.sizes, device).repeat(3, 1)
        with torch.no_grad(), self.network.scaled(0):
            text = self._spoken([*target, *positive, *negative], device)
            answers = self.base.predict(noisy.repeat(3, 1, 1, 1), timesteps.repeat(3), text, sizes).float()
        middle, more, less = answers.chunk(3)
        step = self.slider.strength * (more - less)
        wanted = torch.cat([middle + step, middle - step])
        return self.both_ways(batch, noisy.repeat(2, 1, 1, 1), timesteps, self._spoken(target * 2, device), wanted)

    def _spoken(self, prompts: Sequence[str], device: torch.device) -> TextStates:
        assert self.encoded is not None
        return sent_text(self.encoded(prompts), device)


@dataclass(frozen=True)
class PictureSlider(SliderLoss):
    """The difference of two pictures: at weight 1 the one is learned, at weight -1 its opposite.

    Both with the same noise at the same timestep, so that nothing but the change tells them apart (section 4), and
    with the caption of the first.
    """

    encode: EncodePrompts | None = None  # where the batch has no states of its captions

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.opposite is not None
        drawn = self.drawn(batch)
        device = drawn.timesteps.device
        alphas = sent(self.base.alphas_cumprod, device)[drawn.timesteps].repeat(2)
        latents = sent(torch.cat([batch.latents, batch.opposite]), device)
        noise = drawn.noise.repeat(2, 1, 1, 1)
        noisy = add_noise(latents, drawn.shown.repeat(2, 1, 1, 1), alphas)
        wanted = target(self.base.facts.prediction, latents, noise, alphas)
        if batch.text:
            text = sent_text(batch.text, device)
        else:
            assert self.encode is not None
            text = self.encode(batch.captions)
        return self.both_ways(batch, noisy, drawn.timesteps, _twice(text), wanted)


def _twice(text: TextStates) -> TextStates:
    pooled = None if text.pooled is None else text.pooled.repeat(2, 1)
    return TextStates(text.context.repeat(2, 1, 1), pooled)
