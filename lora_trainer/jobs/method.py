"""How a run trains, for its plan: what is refused since it does not go together, and what is told of the rest."""

from __future__ import annotations

from lora_trainer.config.options import ObjectiveConfig, RunConfig, TrainConfig
from lora_trainer.contracts import PlainError, PredictionType


def check(config: RunConfig) -> None:
    """Raise PlainError for settings of the objective that are right one by one and not together."""
    objective, gamma = config.objective, config.train.min_snr_gamma
    if objective.min_timestep >= objective.max_timestep:
        raise PlainError(
            f"objective.min_timestep is {objective.min_timestep} and objective.max_timestep is "
            f"{objective.max_timestep}, which leaves no timestep to train; set the first below the second."
        )
    if objective.weighting != "min_snr" and gamma not in (0, TrainConfig.min_snr_gamma):
        raise PlainError(
            f"train.min_snr_gamma is {gamma:g}, but objective.weighting is {objective.weighting}, which does not use "
            "it; leave one of the two out."
        )
    class_word(config)


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
