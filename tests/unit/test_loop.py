"""The loop's promises: accumulation, resume, orders, and steps that are not finite.

The network here is one matrix and the loss a regression, because the loop knows no more of them than their protocols;
the same promises on real base models are kept by tests/unit/test_run.py.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

from lora_trainer.contracts import Batch, Finished, ParameterGroup, Saved, Skipped, Stepped, Told
from lora_trainer.train.control import Controls
from lora_trainer.train.loop import SKIPS_ALLOWED, Pace, StepBroken, Work, fit
from lora_trainer.train.optimizers import RatePlan, Updater
from lora_trainer.train.processes import OneProcess
from lora_trainer.train.schedules import Schedule
from lora_trainer.train.state import restore


class Matrix:
    """A network of one 3 x 3 matrix."""

    kind, rank, alpha = "lora", 3, 3.0

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.arange(9.0).reshape(3, 3) / 7)

    def groups(self):
        return [ParameterGroup("unet", [self.weight])]

    def state(self):
        return {"unet.it.lora_down.weight": self.weight.detach().clone()}

    def load_state(self, state):
        with torch.no_grad():
            self.weight.copy_(state["unet.it.lora_down.weight"])

    def eject(self):
        pass


class Bench:
    """A loop ready to run, with what it did."""

    def __init__(self, tmp_path, *, batch=2, accumulation=1, steps=6, save_every=0, clip=1.0, poison=(), fp16=False):
        self.network = Matrix()
        self.control = Controls()
        self.saved = []
        self.batch, self.poison = batch, poison
        rates = RatePlan({"unet": 0.05}, Schedule("cosine", steps, 1))
        self.updater = Updater(self.network.groups(), rates, weight_decay=0.01, scale_loss=fp16)
        self.pace = Pace(steps, accumulation, clip, save_every, 0)
        self.tmp_path = tmp_path

    def work(self):
        return Work(
            batches=self.batches, loss=self.loss, network=self.network, updater=self.updater, control=self.control,
            processes=OneProcess(torch.device("cpu")), exclusive=nullcontext, save=self.save, sample=lambda step: None,
        )

    def batches(self, index):
        positions = tuple(range(index * self.batch, (index + 1) * self.batch))
        rows = [torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(p)) for p in positions]
        return Batch(positions, torch.stack(rows), ("",) * self.batch, None, torch.zeros(self.batch, 6),
                     torch.ones(self.batch))

    def loss(self, batch):
        error = (batch.latents @ self.network.weight).square().mean(dim=(1, 2, 3)).mean()
        return error * float("nan") if batch.positions[0] // self.batch in self.poison else error

    def save(self, state):
        self.saved.append(state)
        return Saved(state.step, self.tmp_path / f"{state.step}", final=False)

    def run(self, start=0):
        events, steps = [], fit(self.pace, self.work(), start)
        while True:
            try:
                events.append(next(steps))
            except StopIteration as end:
                return events, end.value


def test_accumulation_of_two_equals_a_batch_of_two(tmp_path):
    whole, halves = Bench(tmp_path, batch=2), Bench(tmp_path, batch=1, accumulation=2)
    whole.run(), halves.run()
    torch.testing.assert_close(halves.network.weight, whole.network.weight, rtol=1e-6, atol=1e-7)
    assert not torch.equal(whole.network.weight, Matrix().weight)


@pytest.mark.parametrize("at", [2, 4])
def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path, at):
    straight = Bench(tmp_path, save_every=2)
    straight_events, straight_end = straight.run()
    resumed = Bench(tmp_path)
    restore(next(s for s in straight.saved if s.step == at), resumed.network, resumed.updater)
    events, end = resumed.run(start=at)
    assert torch.equal(resumed.network.weight, straight.network.weight)
    for name, moment in straight_end.state.moments.items():
        assert torch.equal(end.state.moments[name], moment), name
    losses = [e.loss for e in straight_events if isinstance(e, Stepped)]
    assert [e.loss for e in events if isinstance(e, Stepped)] == losses[at:]


def test_a_captured_state_does_not_move_with_later_steps(tmp_path):
    bench = Bench(tmp_path, save_every=2)
    bench.run()
    early, late = bench.saved[0].network, bench.network.state()
    assert not torch.equal(early["unet.it.lora_down.weight"], late["unet.it.lora_down.weight"])


def test_stop_acts_after_the_step_under_way(tmp_path):
    bench = Bench(tmp_path)
    steps = fit(bench.pace, bench.work())
    seen = [next(steps), next(steps)]
    bench.control.stop()
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert isinstance(seen[-1], Stepped)
    assert end.value.value.kind == "stopped"
    assert end.value.value.state.step == 1


def test_save_now_saves_after_one_step_and_only_once(tmp_path):
    bench = Bench(tmp_path)
    bench.control.save_now()
    events, _ = bench.run()
    assert [e.step for e in events if isinstance(e, Saved)] == [1]


def test_one_bad_step_is_skipped_and_changes_nothing(tmp_path):
    bench = Bench(tmp_path, steps=3, poison={1})
    steps, before = fit(bench.pace, bench.work()), None
    for event in steps:
        if isinstance(event, Stepped) and event.step == 1:
            before = bench.network.state()["unet.it.lora_down.weight"]
        if isinstance(event, Skipped):
            assert event.step == 2
            assert event.in_a_row == 1
            assert torch.equal(before, bench.network.weight)
    assert torch.isfinite(bench.network.weight).all()


def test_three_bad_steps_in_a_row_go_back_to_the_last_checkpoint(tmp_path):
    bench = Bench(tmp_path, steps=9, save_every=2, poison={3, 4, 5})
    events, end = bench.run()
    assert end.kind == "diverged"
    assert end.state.step == 2
    assert sum(isinstance(e, Skipped) for e in events) == SKIPS_ALLOWED
    assert torch.equal(bench.network.weight, bench.saved[0].network["unet.it.lora_down.weight"])


def test_bad_steps_apart_do_not_end_the_run(tmp_path):
    _, end = Bench(tmp_path, steps=8, poison={1, 2, 4, 6}).run()
    assert end.kind == "done"


def test_no_checkpoint_is_written_at_a_bad_step(tmp_path):
    bench = Bench(tmp_path, steps=6, save_every=2, poison={3})
    bench.run()
    assert [state.step for state in bench.saved] == [2]


def test_an_overflow_of_the_loss_scale_lowers_it_and_does_not_count(tmp_path):
    bench = Bench(tmp_path, steps=2, fp16=True)
    bench.network.weight.data *= 1e33  # the loss is finite, its gradient times 65536 is not
    bench.loss = lambda batch: bench.network.weight.sum()
    bench.network.weight.register_hook(lambda g: g * 1e35)
    events, _ = bench.run()
    skipped = [e for e in events if isinstance(e, Skipped)]
    assert [e.in_a_row for e in skipped] == [0, 0]
    assert bench.updater.state()[1]["scale"] == 65536 / 4


def test_clipping_limits_the_update_to_the_norm(tmp_path):
    bench = Bench(tmp_path, steps=1, clip=0.001)
    bench.run()
    assert bench.network.weight.grad.norm().item() == pytest.approx(0.001, rel=1e-3)


def test_the_device_is_held_for_each_step_and_free_between(tmp_path):
    held = []

    @contextmanager
    def exclusive():
        held.append(True)
        yield
        held.pop()

    bench = Bench(tmp_path, steps=2)

    def loss(batch):
        assert held
        return Bench.loss(bench, batch)

    for event in fit(bench.pace, replace(bench.work(), exclusive=exclusive, loss=loss)):
        assert not held, event


def test_a_checkpoint_that_failed_is_told_and_the_run_goes_on(tmp_path):
    bench = Bench(tmp_path, save_every=2)
    bench.save = lambda state: Told("disk full", "warning")
    events, end = bench.run()
    assert end.kind == "done"
    assert sum(isinstance(e, Told) for e in events) == 2
    assert not any(isinstance(e, Finished) for e in events)


def test_out_of_memory_keeps_what_was_learnt(tmp_path):
    straight = Bench(tmp_path, save_every=3)
    straight.run()
    bench = Bench(tmp_path)

    def loss(batch):
        if batch.positions[0] // bench.batch == 3:
            torch.empty(2**60)  # more bytes than any machine has: the allocator's own error
        return Bench.loss(bench, batch)

    bench.loss = loss
    _, end = bench.run()
    assert end.kind == "out of memory"
    assert end.state.step == 3
    assert torch.equal(bench.network.weight, straight.saved[0].network["unet.it.lora_down.weight"])


def test_a_step_that_breaks_off_gives_up_what_was_learnt_before_it(tmp_path):
    straight, broken = Bench(tmp_path, save_every=3), Bench(tmp_path)
    straight.run()
    batches = broken.batches

    def gone(index):
        if index == 3:
            raise FileNotFoundError("the picture is gone")
        return batches(index)

    broken.batches = gone
    with pytest.raises(StepBroken) as caught:
        broken.run()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert caught.value.state.step == 3
    for name, weight in straight.saved[0].network.items():
        assert torch.equal(caught.value.state.network[name], weight)


@pytest.mark.parametrize("fault", [OSError("no space left"), RuntimeError("the sampler does not know this")])
def test_a_checkpoint_or_a_picture_that_fails_does_not_cost_the_training(tmp_path, fault):
    straight, troubled = Bench(tmp_path), Bench(tmp_path, save_every=2)
    straight.run()
    troubled.pace = replace(troubled.pace, sample_every=3)

    def fail(*given):
        raise fault

    troubled.save = fail
    work = replace(troubled.work(), sample=fail)
    events = list(fit(troubled.pace, work))
    told = [event.text for event in events if isinstance(event, Told)]
    assert len(told) == 4  # checkpoints of steps 2 and 4, pictures of steps 3 and 6
    assert all(str(fault) in text and "the training goes on" in text for text in told)
    assert torch.equal(troubled.network.weight, straight.network.weight)


def test_a_groups_rate_is_a_multiple_of_its_parts():
    """AdamW's first step is lr * g / (|g| + eps), whatever the gradient's size: Kingma and Ba 2014, section 2.1."""
    slow, fast = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    groups = [ParameterGroup("unet", [slow]), ParameterGroup("unet", [fast], rate=16.0)]
    updater = Updater(groups, RatePlan({"unet": 1e-3}, Schedule("constant", 2, 0)), weight_decay=0.0, scale_loss=False)
    updater.backward((slow.sum() + fast.sum()) * 3)
    assert updater.update(0, finite=True) == {"unet": 1e-3}, "what is told is the part's own"
    torch.testing.assert_close(slow, torch.full((2,), -1e-3))
    torch.testing.assert_close(fast, torch.full((2,), -16e-3))
