"""How a run trains, for its plan: what is refused since it does not go together, and what is told of the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lora_trainer.config.options import ObjectiveConfig, RunConfig
from lora_trainer.contracts import PlainError, PredictionType
from lora_trainer.train import optimizer_kinds
from lora_trainer.train.optimizer_kinds import KINDS


def check(config: RunConfig) -> None:
    """Raise PlainError for settings of the objective that are right one by one and not together."""
    objective = config.objective
    if objective.min_timestep >= objective.max_timestep:
        raise PlainError(
            f"objective.min_timestep is {objective.min_timestep} and objective.max_timestep is "
            f"{objective.max_timestep}, which leaves no timestep to train; set the first below the second."
        )
    class_word(config)


def check_optimizer(config: RunConfig, rates: Mapping[str, float], device: torch.device) -> None:
    """Raise PlainError where the optimizer is not to be had, or not with these settings; tries it on a few numbers."""
    chosen = KINDS[config.optimizer.kind]
    if chosen.one_rate and len(set(rates.values()) - {0.0}) > 1:
        told = ", ".join(f"{part} {rate:g}" for part, rate in rates.items())
        raise PlainError(
            f"optimizer.kind: {chosen.name} finds one learning rate for all parts, but they have different ones "
            f"({told}); leave text_encoder_lr empty, or set it to 0 or to learning_rate."
        )
    optimizer_kinds.check(config.optimizer, device)


def optimizer(config: RunConfig) -> tuple[str, str]:
    """The optimizer in words, and a reason where one is due."""
    chosen = KINDS[config.optimizer.kind]
    told = chosen.title
    if chosen.one_rate and config.optimizer.prodigy_coefficient != 1:
        told += f" x {config.optimizer.prodigy_coefficient:g}"
    if config.train.ema > 0:
        told += f", moving average {config.train.ema:g}"
    return told, "it needs no schedule, so the rate is constant after warm-up" if chosen.averages else ""


def schedule(config: RunConfig) -> str:
    """The course of the learning rate in words."""
    train = config.train
    if KINDS[config.optimizer.kind].averages:
        return "constant"
    more = {"cosine_with_restarts": f" x {train.schedule_cycles}", "polynomial": f" of power {train.schedule_power:g}"}
    return train.schedule + more.get(train.schedule, "")


def advice(config: RunConfig) -> list[str]:
    """A sentence where the learning rate is far from what the optimizer wants."""
    chosen, rate = KINDS[config.optimizer.kind], config.train.learning_rate
    low, high = chosen.rates
    if rate == 0 or low <= rate <= high:
        return []
    side = "low" if rate < low else "high"
    return [f"train.learning_rate {rate:g} is {side} for {chosen.title}: {chosen.advice}."]


def class_word(config: RunConfig) -> str:
    """What stands in the trigger word's place where the base model is kept; empty where it is not.

    Raises PlainError where it is to be kept and a word is missing.
    """
    objective = config.objective
    if objective.preserve == 0:
        return ""
    for path, given, what in (
        ("data.trigger", config.data.trigger, "the word that calls the new thing"),
        ("objective.preserve_class", objective.preserve_class, "what that is a kind of, such as cat"),
    ):
        if not given.strip():
            raise PlainError(
                f"objective.preserve is {objective.preserve:g}, but {path} is empty; give it {what}, or set "
                "objective.preserve: 0."
            )
    return objective.preserve_class.strip()


def objective(config: RunConfig, prediction: PredictionType) -> tuple[str, str]:
    """The loss in words, and a reason where one is due."""
    chosen = config.objective
    told = [_loss(chosen), _weighting(config), _timesteps(chosen)]
    if config.train.noise_offset > 0:
        told.append(f"noise offset {config.train.noise_offset:g}")
    if chosen.pyramid_noise:
        told.append(f"{chosen.pyramid_noise} layers of pyramid noise x {chosen.pyramid_discount:g}")
    if chosen.input_perturbation > 0:
        told.append(f"input perturbed by {chosen.input_perturbation:g}")
    if chosen.preserve > 0:
        told.append(f"{chosen.preserve:g} x keeping the base on '{class_word(config)}'")
    form = prediction == "v_prediction" and chosen.weighting != "none"
    return ", ".join(told), "weights in the form for v" if form else ""


def _loss(chosen: ObjectiveConfig) -> str:
    if chosen.loss == "l2":
        return "squared error"
    return f"{chosen.loss} with delta {chosen.huber_delta:g} ({chosen.huber_schedule})"


def _weighting(config: RunConfig) -> str:
    gamma = config.train.min_snr_gamma
    if config.objective.weighting == "min_snr" and gamma > 0:
        return f"min-SNR {gamma:g}"
    return "debiased" if config.objective.weighting == "debiased" else "all timesteps alike"


def _timesteps(chosen: ObjectiveConfig) -> str:
    span = f"{chosen.min_timestep} to {chosen.max_timestep - 1}"
    if chosen.timesteps == "logit_normal":
        return f"timesteps {span} around the middle (mean {chosen.logit_mean:g}, width {chosen.logit_std:g})"
    lean = {"uniform": "", "low_noise": ", little noise more often", "high_noise": ", much noise more often"}
    return f"timesteps {span}{lean[chosen.timesteps]}"
