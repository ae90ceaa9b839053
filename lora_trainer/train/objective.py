"""What the UNet is asked to predict, how an error counts, and how much each timestep does. Pure functions of tensors.

Symbols as in Ho et al. 2020 (arXiv 2006.11239): x0 clean latents, eps noise, abar_t cumulated alphas. With them the
signal-to-noise ratio is SNR = abar / (1 - abar), and a picture's own share of noise sigma = sqrt(1 / SNR).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lora_trainer.contracts import PredictionType

LossKind = Literal["l2", "huber", "smooth_l1"]
DeltaSchedule = Literal["snr", "exponential", "constant"]
Weighting = Literal["min_snr", "debiased", "none"]

# sd-scripts, library/custom_train_functions.py, apply_debiased_estimation: the first timesteps would weigh nothing.
_HIGHEST_SNR = 1000.0


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al. 2020, equation 4).

    `latents` and `noise` (B, 4, h, w); `alphas_cumprod` (B,), already taken at each sample's timestep.
    """
    a = alphas_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(prediction: PredictionType, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noise, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D)."""
    if prediction == "epsilon":
        return noise
    a = alphas_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


# --- how an error counts ---------------------------------------------------------------------------------------------


def error_map(kind: LossKind, predicted: Tensor, wanted: Tensor, deltas: Tensor | None) -> Tensor:
    """How far each value is off, as a loss (B, 4, h, w); `deltas` (B,) are wanted for all but "l2".

    The pseudo-Huber forms of sd-scripts (library/train_util.py, conditional_loss): with d = predicted - wanted,
    huber 2 delta (sqrt(d^2 + delta^2) - delta) and smooth_l1 2 (sqrt(d^2 + delta^2) - delta). For small d these are
    d^2 and d^2 / delta, for large ones lines of slope 2 delta and 2.
    """
    if kind == "l2" or deltas is None:
        return (predicted - wanted).square()
    delta = deltas.view(-1, 1, 1, 1)
    bent = 2 * (((predicted - wanted).square() + delta.square()).sqrt() - delta)
    return delta * bent if kind == "huber" else bent


def huber_deltas(
    schedule: DeltaSchedule, delta: float, timesteps: Tensor, alphas_cumprod: Tensor, count: int
) -> Tensor:
    """Delta (B,) of each sample, after sd-scripts (library/train_util.py, get_huber_threshold_if_needed).

    With sigma = sqrt(1 / SNR): "snr" (1 - delta) / (1 + sigma)^2 + delta; "exponential" delta^(t / T), T = `count`
    timesteps; both fall from 1 where there is no noise to delta where all is noise. Source of the idea: Khrapov et
    al. 2024 (arXiv 2403.16728).
    """
    if schedule == "constant":
        return torch.full_like(alphas_cumprod, delta)
    if schedule == "exponential":
        return torch.exp(math.log(delta) / count * timesteps.to(alphas_cumprod.dtype))
    sigma = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()  # infinite at a zero terminal SNR, which gives delta
    return (1 - delta) / (1 + sigma).square() + delta


# --- how much a timestep counts --------------------------------------------------------------------------------------


def weights(weighting: Weighting, prediction: PredictionType, alphas_cumprod: Tensor, gamma: float) -> Tensor | None:
    """Weight (B,) of each sample's error; None where all count alike."""
    if weighting == "debiased":
        return debiased_weights(prediction, alphas_cumprod)
    if weighting == "min_snr" and gamma > 0:
        return min_snr_weights(prediction, alphas_cumprod, gamma)
    return None


def min_snr_weights(prediction: PredictionType, alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Weight (B,) of each sample's squared error, after Hang et al. 2023 (arXiv 2303.09556, section 3.4).

    min(SNR, gamma) / SNR for the noise, min(SNR, gamma) / (SNR + 1) for v. At a zero terminal SNR the noise form is
    0 / 0; its limit, 1, is taken.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return torch.where(snr > 0, snr.clamp(max=gamma) / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))


def debiased_weights(prediction: PredictionType, alphas_cumprod: Tensor) -> Tensor:
    """1 / sqrt(SNR) for the noise (Yu et al. 2023, arXiv 2310.08442, section 4.2), 1 / (SNR + 1) for v.

    The form for v and the SNR's limit of 1000 are sd-scripts' (library/custom_train_functions.py,
    apply_debiased_estimation).
    """
    snr = (alphas_cumprod / (1 - alphas_cumprod)).clamp(max=_HIGHEST_SNR)
    return 1 / (snr + 1) if prediction == "v_prediction" else snr.rsqrt()


def mean_error(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean (B,) of each sample's error (B, C, h, w), of each cell as much as the mask (B, 1, h, w) says.

    A weighted mean, sum(w e) / sum(w): a small subject counts as much as one that fills its picture, and the learning
    rate means the same with a mask as without one. OneTrainer does so where `normalize_masked_area_loss` is set
    (modules/util/loss/masked_loss.py); kohya's sd-scripts does not divide (library/custom_train_functions.py,
    apply_masked_loss), so that there a subject on a tenth of the picture counts a tenth. A mask of ones gives the plain
    mean; one of zeros has no mean, and is none that a data set lets through.
    """
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    weighted = (error * mask).sum(dim=(1, 2, 3))
    return weighted / (error.shape[1] * mask.sum(dim=(1, 2, 3)))
