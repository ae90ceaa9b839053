"""What a UNet predicts where its header does not tell: by the file's notes, or by asking the UNet itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lora_trainer.contracts import Family, LentModel, ModelFacts, PredictionType, TextStates

SCHEDULER_NOTE = "scheduler_config.json: prediction_type"  # how a diffusers folder passes on what it says
# Where notes tell it; the first is Stability AI's Model Metadata Standard.
_NOTES = ("modelspec.prediction_type", SCHEDULER_NOTE)
_WORDS: Mapping[str, PredictionType] = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
_UNTOLD = "not told by the file"


def untold(family: str) -> ModelFacts:
    """Facts of a model whose header cannot tell what it predicts, so that `resolve` looks further."""
    return ModelFacts(family, "epsilon", zero_terminal_snr=False, reason=_UNTOLD)


def noted(facts: ModelFacts, metadata: Mapping[str, str]) -> ModelFacts:
    """Facts with what the notes of a safetensors file say of the prediction; keys in the header go before notes."""
    for note in _NOTES:
        said = metadata.get(note, "").strip().lower()
        if said in _WORDS and facts.prediction != "v_prediction":
            return replace(facts, prediction=_WORDS[said], reason=f"{note} is {said}")
    return facts


def resolve(lent: LentModel, family: Family) -> LentModel:
    """The same model with facts made sure of; reads and runs the UNet, on the CPU, only where nothing else told."""
    if lent.facts.reason != _UNTOLD:
        return lent
    mean = mean_answer(lent, family)
    prediction: PredictionType = "v_prediction" if mean < -1 else "epsilon"
    reason = f"the UNet's answer to a constant input lies {mean:+.2f} from it; below -1 means v-prediction"
    return replace(lent, facts=replace(lent.facts, prediction=prediction, reason=reason))


def mean_answer(lent: LentModel, family: Family) -> float:
    """Mean difference of the UNet's answer from a constant input at the last timestep.

    The test by which the WebUI tells SD2's v-prediction (AUTOMATIC1111 v1.10.1, modules/sd_models_config.py,
    is_using_v_parameterization_for_sd2): at timestep 999 a UNet that predicts noise gives back what it is shown,
    one that predicts v lies far below. Latents (1, 4, 8, 8) and text (1, 2, D) of 0.5.
    """
    import torch

    from lora_trainer.families.unet import read_unet

    base = family.adopt(lent, torch.device("cpu"), torch.float32, ["unet"])
    latents = torch.full((1, 4, 8, 8), 0.5)
    text = TextStates(torch.full((1, 2, read_unet(lent.header).context), 0.5))
    with torch.no_grad():
        answer = base.predict(latents, torch.tensor([999]), text, torch.zeros(1, 6))
    return float((answer - latents).mean())
