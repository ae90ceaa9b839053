"""Learning rates against diffusers' own schedules, step for step, and REX against its paper's formula."""

import pytest
import torch
from diffusers import optimization

from lora_trainer.train.schedules import Schedule

THEIRS = {
    "constant": optimization.get_constant_schedule_with_warmup,
    "linear": lambda o, w: optimization.get_linear_schedule_with_warmup(o, w, 20),
    "cosine": lambda o, w: optimization.get_cosine_schedule_with_warmup(o, w, 20),
    "cosine_with_restarts": lambda o, w: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(o, w, 20, 3),
    "polynomial": lambda o, w: optimization.get_polynomial_decay_schedule_with_warmup(o, w, 20, lr_end=0.0, power=2.0),
}


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("warmup", [0, 3])
def test_every_step_equals_diffusers(kind, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = THEIRS[kind](optimizer, warmup)
    ours = Schedule(kind, 20, warmup, cycles=3, power=2.0)
    for step in range(20):
        assert ours.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_rex_is_the_papers_profile():
    ours = Schedule("rex", 20, 0)
    for step in range(20):  # Chen et al. 2021, section 3: p(t) = (1 - t/T) / (1/2 + 1/2 (1 - t/T))
        assert ours.factor(step) == pytest.approx((1 - step / 20) / (0.5 + 0.5 * (1 - step / 20)))
    cosine = Schedule("cosine", 20, 0)
    assert ours.factor(10) > cosine.factor(10), "held high for longer"


@pytest.mark.parametrize("kind", [*THEIRS, "rex"])
def test_a_run_of_warmup_only_does_not_divide_by_zero(kind):
    assert Schedule(kind, 1, 1).factor(0) == 0.0
    assert Schedule(kind, 1, 1).factor(1) == 1.0


def test_cycles_and_power_matter():
    restarts = [Schedule("cosine_with_restarts", 20, 0, cycles=n).factor(11) for n in (1, 2)]
    assert restarts[1] > 2 * restarts[0]
    assert Schedule("polynomial", 20, 0, power=3.0).factor(10) == pytest.approx(0.125)
