"""What the UNet is asked to predict, and how much each timestep counts. Pure functions of tensors.

Symbols as in Ho et al. 2020 (arXiv 2006.11239): x0 clean latents, eps noise, abar_t cumulated alphas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_trainer.contracts import PredictionType


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


def min_snr_weights(prediction: PredictionType, alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Weight (B,) of each sample's squared error, after Hang et al. 2023 (arXiv 2303.09556, section 3.4).

    With SNR = abar / (1 - abar): min(SNR, gamma) / SNR for the noise, min(SNR, gamma) / (SNR + 1) for v. At a zero
    terminal SNR the noise form is 0 / 0; its limit, 1, is taken.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return torch.where(snr > 0, snr.clamp(max=gamma) / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))


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
