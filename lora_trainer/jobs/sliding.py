"""Runs that train a slider: what is refused since it does not go together, what is told, and what is readied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lora_trainer.config.options import ObjectiveConfig, RunConfig, SliderConfig
from lora_trainer.config.seeds import sample_seed
from lora_trainer.config.values import shown
from lora_trainer.contracts import BaseModel, Event, PlainError, TextStates
from lora_trainer.data.pairs import opposites
from lora_trainer.data.scan import Scan, scan
from lora_trainer.data.texts import TextCache
from lora_trainer.families.sampling import draw_latents
from lora_trainer.jobs.planned import Choice
from lora_trainer.train.slider_loss import prompts_of, worded

SliderKind = Literal["", "prompts", "pictures"]
WEIGHTS = (-1.0, 0.0, 1.0)  # at which a slider's samples are drawn

# As rohitgandikota/sliders draws what it learns on (trainscripts/textsliders/train_lora.py), with the steps of an
# order of sampler that needs fewer.
_GUIDANCE = 3.0
_DRAWING_STEPS = 20
_OF_PROMPTS = ("positive", "negative", "target", "strength", "keep", "pictures")


def kind_of(config: RunConfig) -> SliderKind:
    """What the slider is learned from; empty for every other run."""
    if config.slider.opposite:
        return "pictures"
    return "prompts" if config.slider.positive.strip() or config.slider.negative.strip() else ""


def draws_pictures(config: RunConfig) -> bool:
    """Whether the base model draws what the slider is learned on."""
    return kind_of(config) == "prompts" and not config.data.folder


def check(config: RunConfig) -> None:
    """Raise PlainError for settings that do not go together with a slider, or not without one."""
    slider, kind = config.slider, kind_of(config)
    if kind != "prompts":
        _refuse_prompts(slider, kind)
    if kind == "prompts":
        _check_prompts(config)
    if kind:
        _refuse_others(config)


def _refuse_prompts(slider: SliderConfig, kind: SliderKind) -> None:
    for name in _OF_PROMPTS:
        value, idle = getattr(slider, name), getattr(SliderConfig(), name)
        if value != idle:
            why = (
                "the slider is learned from pictures (slider.opposite)" if kind
                else "counts for sliders of two prompts only; give slider.positive and slider.negative theirs"
            )  # fmt: skip
            joined = f"but {why}; leave one of them out" if kind else f"which {why}, or leave it out"
            raise PlainError(f"slider.{name} is {shown(value)}, {joined}.")


def _check_prompts(config: RunConfig) -> None:
    slider = config.slider
    if slider.positive.strip() == slider.negative.strip():
        raise PlainError(
            f"slider.positive and slider.negative are both {shown(slider.positive)}, so there is no difference to "
            "learn; let them differ in what the slider is to change."
        )
    for path, given, why in (
        ("data.trigger", config.data.trigger, "a slider has no word to be called by, only its weight"),
        ("data.shuffle_captions", config.data.shuffle_captions, "no caption is learned"),
        ("data.metadata", config.data.metadata, "no caption is learned"),
        ("validation.share", config.validation.share, "no picture is learned, so none can be held out"),
        ("validation.folder", config.validation.folder, "no picture is learned, so none can be held out"),
        ("objective.input_perturbation", config.objective.input_perturbation, "no noise is asked for"),
        ("data.masked_loss", config.data.masked_loss and draws_pictures(config), "drawn pictures have no masks"),
    ):
        if given:
            raise PlainError(f"{path} is set, but in a slider of two prompts {why}; leave it out.")


def _refuse_others(config: RunConfig) -> None:
    if config.data.regularization:
        raise PlainError(
            "data.regularization names pictures of the class, but a slider has only two sides; leave it out, or leave "
            "the slider out."
        )
    if config.objective.preserve:
        raise PlainError(
            f"objective.preserve is {config.objective.preserve:g}, but a slider at weight 0 is the base model anyway; "
            f"set objective.preserve: {ObjectiveConfig.preserve:g}."
        )
    if config.train.text_encoder_learning_rate:
        raise PlainError(
            f"text_encoder_lr is {config.train.text_encoder_learning_rate:g}, but a slider is learned by the UNet "
            "alone, since prompts must mean the same on both sides; set it to 0, or leave it out."
        )


def opposite_of(config: RunConfig, found: Scan) -> Scan | None:
    """The pictures opposite to those found; None where there are none. Raises PlainError where a partner is missing."""
    if kind_of(config) != "pictures":
        return None
    folder = Path(config.slider.opposite or "").expanduser()
    if folder.exists() and folder.resolve() == found.folder.resolve():
        raise PlainError(
            f"slider.opposite and data.folder are both {folder}, so that nothing tells the two sides apart; name the "
            "folder with the pictures before the change."
        )
    return opposites(found, scan(folder))


def heard(config: RunConfig, warnings: Sequence[str]) -> Iterator[str]:
    """Warnings of the scan, without those about captions where none is learned."""
    return (one for one in warnings if kind_of(config) != "prompts" or "caption" not in one)


def choice(config: RunConfig) -> Iterator[Choice]:
    """What the plan tells of the slider."""
    slider = config.slider
    if kind_of(config) == "prompts":
        on = f"on '{slider.target}'" if slider.target else "on everything"
        told = f"{slider.strength:g} x ('{slider.positive}' - '{slider.negative}') {on}"
        kept = f", for {' and '.join(slider.keep)} alike" if slider.keep else ""
        where = f"{slider.pictures} pictures that the base draws" if draws_pictures(config) else "your pictures"
        yield Choice("slider", f"{told}{kept}", f"learned on {where}; captions do not count")
    elif kind_of(config) == "pictures":
        yield Choice("slider", f"{config.data.folder} at weight 1, {slider.opposite} at -1", "")


@dataclass
class Prompts:
    """The prompts of a slider as the frozen text encoder has them; they outlive it."""

    slider: SliderConfig
    _cache: TextCache | None = None

    def prepare(self, encode_text: Callable[..., TextStates]) -> Iterator[Event]:
        """Encode them."""
        cache = TextCache(encode_text)
        yield from cache.fill(prompts_of(self.slider))
        self._cache = cache

    def __call__(self, prompts: Sequence[str]) -> TextStates:
        assert self._cache is not None
        return self._cache.batch(prompts)

    def latents(self, base: BaseModel, seed: int) -> Callable[[int, int], Tensor]:
        """Draws picture `number` with a side of so many pixels by the base as it is.

        For target, positive and negative in turn: the sides are where the slider will be when it is used. The paper's
        code goes there by drawing with the network at each step, which costs as much as twenty of ours.
        """
        slider = self.slider
        kept = slider.keep or ("",)

        def draw(number: int, side: int) -> Tensor:
            prompt = (slider.target, slider.positive, slider.negative)[number % 3]
            text = self(["", worded(kept[number // 3 % len(kept)], prompt)])
            with torch.no_grad():
                own = sample_seed(seed, number, "slider picture")
                return draw_latents(base, text, side, _DRAWING_STEPS, _GUIDANCE, own)

        return draw
