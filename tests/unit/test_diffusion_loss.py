"""The loss on slim base models: every option moves it as it says, and none moves it when it is off."""

from dataclasses import replace

import pytest
import torch

from lora_trainer.config.options import ObjectiveConfig
from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import Batch
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.objective import add_noise, min_snr_weights, target
from tests.builders.networks import base_model, put_on, randomise

PLAIN = ObjectiveConfig()


@pytest.fixture(scope="module")
def base():
    return base_model("sd1")


@pytest.fixture(scope="module")
def network(base):
    network = put_on(base)
    randomise(network)
    return network


@pytest.fixture(scope="module")
def batch(base):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        text, of_class = base.encode_text(["ohwx, a barn", "ohwx"]), base.encode_text(["cat, a barn", "cat"])
    return Batch(
        positions=(3, 8), latents=torch.randn(2, 4, 8, 8, generator=generator), captions=("ohwx, a barn", "ohwx"),
        text=text, sizes=torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2), weights=torch.ones(2),
        class_captions=("cat, a barn", "cat"), class_text=of_class,
    )  # fmt: skip


def loss_of(base, network, batch, gamma=5.0, offset=0.0, **options):
    loss = DiffusionLoss(base, 11, 1, gamma, offset, replace(PLAIN, **options), network)
    with torch.no_grad():
        return loss(batch).item()


def test_a_plain_loss_is_the_closed_form(base, network, batch):
    generator = torch.Generator()
    noises, times = [], []
    for seed in (3, 8):
        generator.manual_seed(sample_seed(11, seed, "noise"))
        times.append(torch.randint(1000, (1,), generator=generator))
        noises.append(torch.randn(4, 8, 8, generator=generator))
    noise, t = torch.stack(noises), torch.cat(times)
    abar = base.alphas_cumprod[t]
    with torch.no_grad():
        answer = base.predict(add_noise(batch.latents, noise, abar), t, batch.text, batch.sizes)
    error = (answer - target("epsilon", batch.latents, noise, abar)).square().mean(dim=(1, 2, 3))
    expected = (error * min_snr_weights("epsilon", abar, 5.0)).mean().item()
    assert loss_of(base, network, batch) == expected


@pytest.mark.parametrize(
    "option",
    [{"loss": "huber"}, {"loss": "smooth_l1"}, {"weighting": "debiased"}, {"weighting": "none"},
     {"timesteps": "logit_normal"}, {"timesteps": "low_noise"}, {"timesteps": "high_noise"}, {"min_timestep": 900},
     {"max_timestep": 100}, {"pyramid_noise": 6}, {"input_perturbation": 0.1}, {"preserve": 1.0}],
)  # fmt: skip
def test_each_option_moves_the_loss(base, network, batch, option):
    assert loss_of(base, network, batch, **option) != pytest.approx(loss_of(base, network, batch), rel=1e-4)


@pytest.mark.parametrize(
    ("on", "option"),
    [({"loss": "huber"}, {"huber_delta": 0.5}), ({"loss": "huber"}, {"huber_schedule": "exponential"}),
     ({"loss": "huber"}, {"huber_schedule": "constant"}), ({"timesteps": "low_noise"}, {"timestep_power": 5.0}),
     ({"timesteps": "logit_normal"}, {"logit_mean": 1.0}), ({"timesteps": "logit_normal"}, {"logit_std": 0.2}),
     ({"pyramid_noise": 6}, {"pyramid_discount": 0.8})],
)  # fmt: skip
def test_each_finer_option_moves_the_loss_of_what_it_belongs_to(base, network, batch, on, option):
    assert loss_of(base, network, batch, **on, **option) != pytest.approx(
        loss_of(base, network, batch, **on), rel=1e-4
    )
    assert loss_of(base, network, batch, **option) == loss_of(base, network, batch), "and of nothing else"


def test_without_a_gamma_and_without_a_weighting_are_one(base, network, batch):
    assert loss_of(base, network, batch, gamma=0.0) == loss_of(base, network, batch, weighting="none")


# --- keeping the base model's own output -----------------------------------------------------------------------------


def test_a_network_that_changes_nothing_has_nothing_to_keep(base, network, batch):
    with network.scaled(0):
        assert loss_of(base, network, batch, preserve=1.0) == loss_of(base, network, batch)


def test_the_distance_from_the_base_is_added_with_its_weight(base, network, batch):
    plain = loss_of(base, network, batch)
    once = loss_of(base, network, batch, preserve=1.0) - plain
    assert once > 1e-4
    assert loss_of(base, network, batch, preserve=3.0) - plain == pytest.approx(3 * once, rel=1e-3)


def test_the_distance_from_the_base_is_the_closed_form(base, network, batch):
    """Mean of (network(x_t, class) - base(x_t, class))^2 at the batch's own noise and timesteps."""
    generator, noises, times = torch.Generator(), [], []
    for position in batch.positions:
        generator.manual_seed(sample_seed(11, position, "noise"))
        times.append(torch.randint(1000, (1,), generator=generator))
        noises.append(torch.randn(4, 8, 8, generator=generator))
    t = torch.cat(times)
    noisy = add_noise(batch.latents, torch.stack(noises), base.alphas_cumprod[t])
    with torch.no_grad():
        now = base.predict(noisy, t, batch.class_text, batch.sizes)
        with network.scaled(0):
            kept = base.predict(noisy, t, batch.class_text, batch.sizes)
    expected = loss_of(base, network, batch) + 2.0 * (now - kept).square().mean().item()
    assert loss_of(base, network, batch, preserve=2.0) == pytest.approx(expected, rel=1e-5)


def test_masks_and_prior_weights_are_the_closed_form(base, network, batch):
    """Each sample's mean error over what its mask shows, times its weight; the sum over the samples over their count,
    as with_prior_preservation in diffusers' train_dreambooth.py adds prior_loss_weight times the prior's mean."""
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4], mask[1, :, 2:] = 1.0, 0.5
    weighed = replace(batch, mask=mask, weights=torch.tensor([1.0, 0.25]))
    singles = []
    for row in range(2):
        one = replace(
            batch, positions=batch.positions[row : row + 1], latents=batch.latents[row : row + 1],
            captions=batch.captions[row : row + 1], sizes=batch.sizes[row : row + 1], weights=torch.ones(1),
            text=replace(batch.text, context=batch.text.context[row : row + 1]), mask=mask[row : row + 1],
        )  # fmt: skip
        singles.append(loss_of(base, network, one))
    assert loss_of(base, network, weighed) == pytest.approx((singles[0] + 0.25 * singles[1]) / 2, rel=1e-4)
    halved = replace(weighed, mask=mask / 2)
    assert loss_of(base, network, halved) == pytest.approx(loss_of(base, network, weighed), rel=1e-5)


def test_it_is_measured_on_the_class_and_not_on_the_trigger(base, network, batch):
    other = replace(batch, class_text=batch.text)
    assert loss_of(base, network, batch, preserve=1.0) != loss_of(base, network, other, preserve=1.0)


def test_captions_are_encoded_where_the_text_encoders_are_trained(base, network, batch):
    untold = replace(batch, text=None, class_text=None)
    trained = loss_of(base, network, untold, preserve=1.0)
    assert trained > loss_of(base, network, untold) > 0


def test_gradients_of_the_kept_output_reach_the_network_alone(base, network, batch):
    loss = DiffusionLoss(base, 11, 1, 5.0, 0.0, replace(PLAIN, preserve=1.0), network)
    gradients = []
    for weight in (0.0, 1.0):
        loss = replace(loss, objective=replace(PLAIN, preserve=weight))
        loss(batch).backward()
        of_unet = next(group for group in network.groups() if group.part == "unet").parameters
        gradients.append(torch.cat([p.grad.flatten() for p in of_unet]))
        for parameter in of_unet:
            parameter.grad = None
    assert not torch.allclose(gradients[0], gradients[1])
    ours = {id(p) for group in network.groups() for p in group.parameters}
    assert all(p.grad is None for part in base.parts.values() for p in part.parameters() if id(p) not in ours)
