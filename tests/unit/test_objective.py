"""Targets, noise and weights against diffusers' schedulers and the closed forms."""

import pytest
import torch
from diffusers import DDPMScheduler

from lora_trainer.train.objective import add_noise, min_snr_weights, target


@pytest.fixture
def scheduler():
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(5)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([3, 500, 999])


def test_noisy_latents_equal_diffusers(scheduler, drawn):
    latents, noise, t = drawn
    ours = add_noise(latents, noise, scheduler.alphas_cumprod[t])
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, t))


def test_v_target_equals_diffusers(scheduler, drawn):
    latents, noise, t = drawn
    ours = target("v_prediction", latents, noise, scheduler.alphas_cumprod[t])
    torch.testing.assert_close(ours, scheduler.get_velocity(latents, noise, t))


def test_epsilon_target_is_the_noise(scheduler, drawn):
    latents, noise, t = drawn
    assert target("epsilon", latents, noise, scheduler.alphas_cumprod[t]) is noise


def test_min_snr_for_epsilon_is_the_closed_form(scheduler):
    abar = scheduler.alphas_cumprod
    snr = (abar.double() / (1 - abar.double()))
    expected = torch.minimum(snr, torch.tensor(5.0, dtype=torch.float64)) / snr
    torch.testing.assert_close(min_snr_weights("epsilon", abar, 5.0).double(), expected, rtol=1e-4, atol=1e-6)


def test_min_snr_for_v_divides_by_snr_plus_one(scheduler):
    abar = scheduler.alphas_cumprod
    snr = (abar.double() / (1 - abar.double()))
    expected = torch.minimum(snr, torch.tensor(5.0, dtype=torch.float64)) / (snr + 1)
    torch.testing.assert_close(min_snr_weights("v_prediction", abar, 5.0).double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_weights_are_finite_at_zero_terminal_snr(prediction):
    weights = min_snr_weights(prediction, torch.tensor([0.0, 1e-6, 0.5]), 5.0)
    assert torch.isfinite(weights).all()
