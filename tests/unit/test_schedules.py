"""Learning rates against diffusers' own schedules, step for step."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from lora_trainer.train.schedules import rate_factor

THEIR_NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@pytest.mark.parametrize("kind", THEIR_NAMES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_every_step_equals_diffusers(kind, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = get_scheduler(THEIR_NAMES[kind], optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(20):
        assert rate_factor(kind, step, 20, warmup) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_run_of_warmup_only_does_not_divide_by_zero():
    assert rate_factor("cosine", 0, 1, 1) == 0.0
    assert rate_factor("cosine", 1, 1, 1) == 1.0
