"""Targets, noise, errors and weights against diffusers' schedulers and the closed forms."""

import pytest
import torch
from diffusers import DDPMScheduler

from lora_trainer.train.objective import (
    add_noise,
    debiased_weights,
    error_map,
    huber_deltas,
    min_snr_weights,
    target,
    weights,
)


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


# --- debiased estimation ---------------------------------------------------------------------------------------------


def test_debiased_weights_are_the_closed_form(scheduler):
    abar = scheduler.alphas_cumprod.double()
    snr = (abar / (1 - abar)).clamp(max=1000)
    torch.testing.assert_close(debiased_weights("epsilon", abar), 1 / snr.sqrt())
    torch.testing.assert_close(debiased_weights("v_prediction", abar), 1 / (snr + 1))


def test_debiased_weighs_noise_more_than_min_snr_does(scheduler):
    late = scheduler.alphas_cumprod[[900]]
    assert debiased_weights("epsilon", late) > 5 * min_snr_weights("epsilon", late, 5.0)


def test_the_weighting_is_chosen_by_its_name(scheduler):
    abar = scheduler.alphas_cumprod
    assert weights("none", "epsilon", abar, 5.0) is None
    assert weights("min_snr", "epsilon", abar, 0.0) is None
    assert torch.equal(weights("min_snr", "epsilon", abar, 5.0), min_snr_weights("epsilon", abar, 5.0))
    assert torch.equal(weights("debiased", "epsilon", abar, 5.0), debiased_weights("epsilon", abar))


# --- Huber -----------------------------------------------------------------------------------------------------------

# sd-scripts 0.9.1's conditional_loss and get_huber_threshold_if_needed, worked out with Python's own floats.
def kohya_loss(kind, difference, delta):
    bent = 2 * ((difference**2 + delta**2) ** 0.5 - delta)
    return bent * delta if kind == "huber" else bent


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_the_error_is_kohyas(kind, drawn):
    predicted, wanted, _ = drawn
    deltas = torch.tensor([0.1, 0.5, 1.0])
    ours = error_map(kind, predicted, wanted, deltas)
    assert ours.shape == predicted.shape, "a map of weights must still fit"
    for place in [(0, 0, 0, 0), (1, 2, 3, 4), (2, 3, 7, 7)]:
        expected = kohya_loss(kind, (predicted - wanted)[place].item(), deltas[place[0]].item())
        assert ours[place].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_small_errors_are_squared_and_large_ones_are_not(kind):
    delta, zero = torch.tensor([0.5]), torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    small, large = error_map(kind, torch.tensor([[[[1e-3, 1e3]]]], dtype=torch.float64), zero, delta.double())[0, 0, 0]
    assert small.item() == pytest.approx(1e-6 / (1 if kind == "huber" else 0.5), rel=1e-4)
    assert large.item() == pytest.approx(2e3 * (0.5 if kind == "huber" else 1), rel=1e-3)


def test_deltas_follow_kohyas_schedules(scheduler):
    t = torch.tensor([0, 250, 999])
    abar = scheduler.alphas_cumprod[t]
    assert huber_deltas("constant", 0.1, t, abar, 1000).tolist() == pytest.approx([0.1] * 3)
    assert huber_deltas("exponential", 0.1, t, abar, 1000).tolist() == pytest.approx(
        [0.1 ** (int(x) / 1000) for x in t], rel=1e-5
    )
    by_snr = [0.9 / (1 + ((1 - float(a)) / float(a)) ** 0.5) ** 2 + 0.1 for a in abar]
    assert huber_deltas("snr", 0.1, t, abar, 1000).tolist() == pytest.approx(by_snr, rel=1e-5)
    assert huber_deltas("snr", 0.1, t[:1], torch.zeros(1), 1000).tolist() == pytest.approx([0.1]), "zero terminal SNR"


def test_squared_errors_are_torchs(drawn):
    predicted, wanted, _ = drawn
    expected = torch.nn.functional.mse_loss(predicted, wanted, reduction="none")
    assert torch.equal(error_map("l2", predicted, wanted, None), expected)
