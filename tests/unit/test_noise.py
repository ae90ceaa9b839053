"""What is drawn for a batch: keyed by position, one option at a time, and with the densities that the papers give."""

from dataclasses import replace

import pytest
import torch

from lora_trainer.config.options import ObjectiveConfig
from lora_trainer.train.noise import draw, leaning_timestep, pyramid

PLAIN = ObjectiveConfig()
GOLDEN_TIMESTEPS, GOLDEN_NOISE = [141, 688], [0.7858911752700806, -1.6043243408203125]
SHAPE = (4, 16, 24)


def drawn(objective=PLAIN, positions=(0, 1, 2), offset=0.0, seed=3):
    return draw(objective, seed, positions, SHAPE, count=1000, offset=offset)


def test_plain_draws_are_torchs_own_by_position():
    # Written down from the first version of the trainer: every resumed run and every old recipe depends on it.
    found = draw(PLAIN, 11, (0, 5), (4, 2, 2), count=1000, offset=0.0)
    assert found.timesteps.tolist() == GOLDEN_TIMESTEPS
    assert found.noise[:, 0, 0, 0].tolist() == pytest.approx(GOLDEN_NOISE)
    assert found.shown is found.noise


@pytest.mark.parametrize(
    "option",
    [{"pyramid_noise": 6}, {"input_perturbation": 0.1}, {"timesteps": "logit_normal"}, {"timesteps": "high_noise"},
     {"timesteps": "low_noise"}],
)  # fmt: skip
def test_a_sample_is_the_same_in_any_company(option):
    objective = replace(PLAIN, **option)
    together, alone = drawn(objective, (4, 7, 9), 0.05), drawn(objective, (7,), 0.05)
    for of_three, of_one in zip(together, alone, strict=True):
        assert torch.equal(of_three[1], of_one[0])
    assert not torch.equal(together.noise[0], together.noise[1])


def test_one_option_changes_only_what_it_is_about():
    plain = drawn()
    leaning = drawn(replace(PLAIN, timesteps="high_noise"))
    assert torch.equal(leaning.noise, plain.noise)
    assert not torch.equal(leaning.timesteps, plain.timesteps)
    perturbed = drawn(replace(PLAIN, input_perturbation=0.1))
    assert torch.equal(perturbed.noise, plain.noise), "what is asked for stays"
    assert torch.equal(perturbed.timesteps, plain.timesteps)
    difference = (perturbed.shown - plain.noise).std().item()
    assert difference == pytest.approx(0.1, rel=0.05)  # Ning et al. 2023, equation 9: gamma times normal noise
    layered = drawn(replace(PLAIN, pyramid_noise=6))
    assert torch.equal(layered.timesteps, plain.timesteps)
    assert not torch.equal(layered.noise, plain.noise)


def test_timesteps_stay_in_their_range():
    for kind in ("uniform", "logit_normal", "low_noise", "high_noise"):
        objective = replace(PLAIN, timesteps=kind, min_timestep=200, max_timestep=210)
        found = drawn(objective, range(400)).timesteps
        assert found.min() == 200, kind
        assert found.max() == 209, kind


def shares(objective, count=8000):
    generator = torch.Generator().manual_seed(1)
    found = torch.cat([leaning_timestep(objective, (0, 100000), generator) for _ in range(count)])
    return (found.double() + 0.5) / 100000


# Distribution functions of the densities named in `leaning_timestep`: Beta(1 / p, 1), Beta(1, 1 / p), and the normal
# distribution's over the logit.
CDFS = {
    "low_noise": lambda s, o: s ** (1 / o.timestep_power),
    "high_noise": lambda s, o: 1 - (1 - s) ** (1 / o.timestep_power),
    "logit_normal": lambda s, o: torch.special.ndtr((torch.logit(s) - o.logit_mean) / o.logit_std),
}


@pytest.mark.parametrize("kind", CDFS)
@pytest.mark.parametrize("power", [2.0, 3.0])
def test_leaning_draws_have_the_density_they_name(kind, power):
    objective = replace(PLAIN, timesteps=kind, timestep_power=power, logit_mean=0.5 if power == 2 else 0.0)
    found = shares(objective).sort().values
    steps = torch.arange(1, len(found) + 1) / len(found)
    distance = (CDFS[kind](found, objective) - steps).abs().max().item()
    assert distance < 1.63 / len(found) ** 0.5, "Kolmogorov's bound at 1 %"


def test_layered_noise_keeps_its_deviation_and_gains_coarse_structure():
    generator = torch.Generator().manual_seed(2)
    fine = torch.randn(SHAPE, generator=generator)
    layered = pyramid(fine, 6, 0.3, generator)
    assert layered.std().item() == pytest.approx(1, abs=1e-5)

    def coarse(noise):  # deviation of the means of 8 x 8 blocks: an eighth for white noise
        return torch.nn.functional.avg_pool2d(noise, 8).std().item()

    stronger = pyramid(fine, 6, 0.8, torch.Generator().manual_seed(2))
    assert coarse(fine) < coarse(layered) < coarse(stronger)
    assert coarse(stronger) > 2 * coarse(fine)


def test_layered_noise_is_kohyas_sum_layer_by_layer():
    """sd-scripts, library/custom_train_functions.py, pyramid_noise_like: noise + sum of enlarge(coarse_i) discount^i,
    at sizes / r^i with r drawn from 2 to 4 for each layer, over the deviation of the whole."""
    fine = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    found = pyramid(fine, 6, 0.4, torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(9)
    total = fine.clone()
    for layer in range(6):
        r = torch.rand(1, generator=generator).item() * 2 + 2
        height, width = (max(1, int(side / r**layer)) for side in SHAPE[1:])
        coarse = torch.randn(1, SHAPE[0], height, width, generator=generator)
        total += torch.nn.Upsample(size=SHAPE[1:], mode="bilinear")(coarse)[0] * 0.4**layer
        if height == 1 or width == 1:
            break
    assert torch.allclose(found, total / total.std(), atol=1e-6)


def test_offset_and_perturbation_add_normal_noise_of_their_width():
    """An offset is one number for each channel; a perturbation is one for each cell, of the shown noise alone."""
    positions, shape = range(300), (4, 8, 8)
    plain = draw(ObjectiveConfig(), 1, positions, shape, count=1000, offset=0.0)
    offset = draw(ObjectiveConfig(), 1, positions, shape, count=1000, offset=0.2)
    moved = offset.noise - plain.noise
    assert torch.allclose(moved, moved.mean(dim=(2, 3), keepdim=True).expand_as(moved), atol=1e-6)
    assert moved[..., 0, 0].std().item() == pytest.approx(0.2, rel=0.06)  # 1200 numbers: a deviation within 2 %
    perturbed = draw(ObjectiveConfig(input_perturbation=0.1), 1, positions, shape, count=1000, offset=0.0)
    assert torch.equal(perturbed.noise, plain.noise)
    added = perturbed.shown - perturbed.noise
    assert added.std().item() == pytest.approx(0.1, rel=0.02)
    assert added.mean(dim=(2, 3)).std().item() == pytest.approx(0.1 / 8, rel=0.1)  # independent cell by cell


def test_layers_end_at_a_single_cell():
    tiny = torch.randn((4, 2, 2), generator=torch.Generator().manual_seed(0))
    first, more = (pyramid(tiny, layers, 0.5, torch.Generator().manual_seed(4)) for layers in (2, 20))
    assert torch.equal(first, more)
