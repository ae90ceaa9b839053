"""Every optimizer: learns, is resumed to the bit through a file, and is refused in words where it is not to be had."""

import importlib.util
import sys

import pytest
import torch

from lora_trainer.config.options import OptimizerConfig
from lora_trainer.contracts import ParameterGroup, PlainError
from lora_trainer.jobs.checkpoints import newest_state, write_state
from lora_trainer.jobs.files import run_files
from lora_trainer.train import optimizer_kinds
from lora_trainer.train.average import decay_at
from lora_trainer.train.optimizer_kinds import KINDS
from lora_trainer.train.optimizers import RatePlan, Updater
from lora_trainer.train.schedules import Schedule
from lora_trainer.train.state import TrainingState

# A rate of each kind's own range, large enough to be seen in a few steps.
RATES = {
    "adamw": 5e-3, "adamw8bit": 5e-3, "adafactor": 5e-3, "lion": 2e-4, "prodigy": 1.0, "schedule_free": 1e-2,
    "came": 2e-3,
}  # fmt: skip
CPU = torch.device("cpu")


def every_kind():
    for name, kind in KINDS.items():
        there = importlib.util.find_spec(kind.module.partition(".")[0]) is not None
        yield pytest.param(name, marks=() if there else pytest.mark.skip(reason=f"{kind.package} is not installed"))


class Bench:
    """A regression that any optimizer can learn: a matrix as a LoRA has them, a kernel, and a vector."""

    def __init__(self, kind="adamw", steps=12, ema=0.0, schedule="constant", factor=1.0, **options):
        generator = torch.Generator().manual_seed(3)
        shapes = ((64, 64), (8, 4, 3, 3), (7,))  # 8-bit moments begin at 4096 numbers
        self.parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        self.goals = [torch.zeros(shape) for shape in shapes]
        groups = [
            ParameterGroup("unet", self.parameters[:2]), ParameterGroup("text_encoder", self.parameters[2:], factor)
        ]  # fmt: skip
        rate = RATES[kind]
        plan = RatePlan({"unet": rate, "text_encoder": rate}, Schedule(schedule, steps, 2))
        self.updater = Updater(
            groups, plan, weight_decay=0.01, scale_loss=False, options=OptimizerConfig(kind=kind, **options), ema=ema
        )  # fmt: skip

    def loss(self):
        return sum((p - goal).square().mean() for p, goal in zip(self.parameters, self.goals, strict=True))

    def run(self, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            self.updater.zero()
            noisy = sum((p * torch.randn(p.shape, generator=generator)).mean() for p in self.parameters)
            self.updater.backward(self.loss() + 0.1 * noisy)
            self.updater.gradients()
            self.rates = self.updater.update(step, finite=True)
        return self

    def weights(self):
        return [p.detach().clone() for p in self.parameters]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", every_kind())
def test_it_learns(kind):
    steps = 200 if kind == "prodigy" else 40  # it begins at a rate of a millionth
    bench = Bench(kind, steps=steps)
    before = bench.loss().item()
    assert bench.run(0, steps).loss().item() < 0.995 * before


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("kind", every_kind())
def test_it_goes_on_from_a_file_to_the_bit(kind, ema, tmp_path):
    if ema and KINDS[kind].averages:
        pytest.skip("it averages by itself")
    straight = Bench(kind, ema=ema).run(0, 12)
    half = Bench(kind, ema=ema).run(0, 5)
    with half.updater.shown():  # as for a sample: it must leave no trace
        pass
    network = {str(index): weight for index, weight in enumerate(half.weights())}
    files = run_files(str(tmp_path / "lora"), None)
    files.work.mkdir()
    write_state(files, TrainingState(5, network, *half.updater.state()), {})
    saved, _ = newest_state(files)
    resumed = Bench(kind, ema=ema)
    with torch.no_grad():
        for index, parameter in enumerate(resumed.parameters):
            parameter.copy_(saved.state.network[str(index)])
    resumed.updater.load_state(saved.state.moments, saved.state.scale)
    resumed.run(5, 12)
    assert same(resumed.weights(), straight.weights())
    with resumed.updater.shown(), straight.updater.shown():
        assert same(resumed.weights(), straight.weights())
    (moments, numbers), (expected, others) = resumed.updater.state(), straight.updater.state()
    assert numbers == others
    assert moments.keys() == expected.keys()
    assert same(moments.values(), [expected[name] for name in moments])


def test_no_two_kinds_do_the_same(monkeypatch):
    here = [param.values[0] for param in every_kind() if not param.marks]
    for kind in here:
        monkeypatch.setitem(RATES, kind, 1e-3)
    ends = [Bench(kind).run(0, 4).weights() for kind in here]
    assert not any(same(one, other) for at, one in enumerate(ends) for other in ends[:at])


def test_a_factor_of_a_group_is_kept():
    slow, fast = Bench().run(0, 4).weights(), Bench(factor=4.0).run(0, 4).weights()
    assert same(slow[:2], fast[:2])
    assert fast[2].norm() < slow[2].norm()


# --- averages --------------------------------------------------------------------------------------------------------


@pytest.mark.newest_only  # diffusers.training_utils does not import beside the hosts' transformers
def test_the_moving_average_is_diffusers():
    from diffusers.training_utils import EMAModel

    bench = Bench(ema=0.9)
    theirs = EMAModel(bench.parameters, decay=0.9)
    for step in range(20):
        bench.run(step, step + 1)
        theirs.step(bench.parameters)
    for ours, other in zip(bench.updater.average.values, theirs.shadow_params, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-7)
    assert [decay_at(step, 0.9) for step in (0, 1, 1000)] == [0.0, pytest.approx(2 / 11), 0.9]


@pytest.mark.parametrize(("kind", "ema"), [("adamw", 0.9), ("schedule_free", 0.0)])
def test_other_weights_are_shown_and_the_trained_ones_come_back_to_the_bit(kind, ema):
    if kind == "schedule_free":
        pytest.importorskip("schedulefree")
    bench = Bench(kind, ema=ema).run(0, 6)
    trained = bench.weights()
    with bench.updater.shown():
        shown = bench.weights()
    assert same(bench.weights(), trained)
    assert not same(shown, trained)
    if ema:
        assert same(shown, bench.updater.average.values)
    else:  # Defazio et al. 2024, section 2: y = (1 - beta1) z + beta1 x, and x is what is shown
        z = bench.updater._optimizer.state[bench.parameters[0]]["z"]
        torch.testing.assert_close(0.1 * z + 0.9 * shown[0], trained[0], rtol=1e-4, atol=1e-5)
    bench.run(6, 8)  # and it goes on


def test_a_state_without_an_average_begins_one_with_the_weights_as_they_are():
    old, new = Bench().run(0, 3), Bench(ema=0.9)
    with torch.no_grad():
        for parameter, weight in zip(new.parameters, old.weights(), strict=True):
            parameter.copy_(weight)
    new.updater.load_state(*old.updater.state())
    assert same(new.updater.average.values, old.weights())


def test_a_state_of_another_optimizer_leaves_the_weights_and_begins_anew():
    old, new = Bench("adafactor").run(0, 3), Bench("adamw")
    new.updater.load_state(*old.updater.state())
    assert new.run(3, 5).updater.state()[0]["0.step"].item() == 2


# --- Prodigy ---------------------------------------------------------------------------------------------------------


def test_prodigy_finds_its_rate_and_tells_it():
    pytest.importorskip("prodigyopt")
    bench = Bench("prodigy", steps=60).run(0, 1)
    first = bench.rates["unet"]
    assert bench.run(1, 60).rates["unet"] > 10 * max(first, 1e-6)
    bolder = Bench("prodigy", steps=60, prodigy_coefficient=2.0).run(0, 60)
    assert bolder.rates["unet"] > 1.2 * bench.rates["unet"]


def test_prodigy_takes_no_second_rate():
    pytest.importorskip("prodigyopt")
    with pytest.raises(PlainError, match="LoRA\\+"):
        Bench("prodigy", factor=4.0)


# --- what is not to be had -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "adamw"])
def test_a_missing_library_is_named_with_the_nearest_that_is_here(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, KINDS[kind].module, None)
    with pytest.raises(PlainError) as caught:
        optimizer_kinds.check(OptimizerConfig(kind=kind), CPU)
    told = str(caught.value)
    assert f"optimizer.kind: {kind} was asked" in told
    assert f"pip install {KINDS[kind].package}" in told
    assert told.endswith(("optimizer.kind: adamw.", "optimizer.kind: adafactor.", "optimizer.kind: schedule_free."))


def test_the_nearest_is_one_that_is_here(monkeypatch):
    for module in ("bitsandbytes.optim", "transformers.optimization"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PlainError, match=r"optimizer\.kind: adamw\.$"):
        optimizer_kinds.check(OptimizerConfig(kind="adamw8bit"), CPU)


def test_a_library_that_breaks_at_its_first_step_is_told_before_the_run(monkeypatch):
    class Broken:
        class Lion(torch.optim.SGD):
            def step(self, closure=None):
                raise RuntimeError("no kernel for this device.")

    monkeypatch.setitem(sys.modules, "lion_pytorch", Broken)
    with pytest.raises(PlainError, match=r"lion-pytorch does not work here \(no kernel for this device\); mend"):
        optimizer_kinds.check(OptimizerConfig(kind="lion"), CPU)


@pytest.mark.parametrize("kind", every_kind())
def test_what_is_here_passes_the_trial(kind):
    optimizer_kinds.check(OptimizerConfig(kind=kind), CPU)
