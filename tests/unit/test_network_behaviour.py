"""What every kind of network promises, on every family and choice of layers: contracts.Network as one suite."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import BaseModel, PlainError
from lora_trainer.networks.adapter import Adapter
from lora_trainer.networks.changes import changes_of
from lora_trainer.networks.network import inject
from lora_trainer.networks.state import modules_of
from tests.builders.networks import (
    FORMS,
    KINDS,
    TARGETS,
    base_model,
    outputs,
    predict,
    put_on,
    randomise,
    rarely,
    weights_of,
)
from tests.builders.slim import Kind

# Every choice of layers on SD1, elsewhere the widest, which holds the others; and every form on a few layers of
# every sort, in UNet and text encoder.
CASES = [
    *(("sd1", targets, "lora") for targets in TARGETS), ("sd2", "all", "lora"), ("sdxl", "all", "lora"),
    *(pytest.param("sd1", "few", form, marks=rarely(form)) for form in FORMS if form != "lora"),
]  # fmt: skip
each_choice = pytest.mark.parametrize(("base", "targets", "form"), CASES, indirect=["base"])
EACH_FORM = [pytest.param("sd1", form, marks=rarely(form)) for form in FORMS]
each_form = pytest.mark.parametrize(("base", "form"), EACH_FORM, indirect=["base"])


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest) -> BaseModel:
    return base_model(request.param)


@pytest.fixture(autouse=True)
def base_as_found(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves the shared base bare, so that a failing one does not take others with it."""
    yield
    if "base" in request.fixturenames:
        for part in request.getfixturevalue("base").parts.values():
            for name, module in list(part.named_modules()):
                if hasattr(module, "base_layer"):
                    parent, _, leaf = name.rpartition(".")
                    setattr(part.get_submodule(parent), leaf, module.base_layer)
            part.requires_grad_(True)


@each_choice
def test_a_fresh_network_changes_nothing_and_a_trained_one_does(base: BaseModel, targets: str, form: str) -> None:
    before = outputs(base)
    network = put_on(base, targets, form=form)
    fresh = outputs(base)
    assert all(torch.equal(before[name], fresh[name]) for name in before)
    randomise(network)
    trained = outputs(base)
    # Far beyond rounding (1e-6), and no explosion: the tests below compare at this size of change.
    for name in before:
        change = (trained[name] - before[name]).norm() / before[name].norm()
        assert 0.01 < change < 2, (name, change)
    network.eject()


@each_choice
def test_eject_leaves_no_trace(base: BaseModel, targets: str, form: str) -> None:
    hooked = base.parts["unet"].get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    calls: list[int] = []
    hook = hooked.register_forward_hook(lambda *_: calls.append(1))
    outputs(base)  # transformers notes on a model that it ran; that is not the network's doing
    flags = [p.requires_grad_(index % 3 == 0).requires_grad for index, p in enumerate(_parameters(base))]
    modules = {part: [(n, id(m), type(m), sorted(vars(m))) for n, m in module.named_modules()]
               for part, module in base.parts.items()}  # fmt: skip
    values, before = {part: weights_of(module) for part, module in base.parts.items()}, outputs(base)
    pointers = [p.data_ptr() for p in _parameters(base)]

    network = put_on(base, targets, form=form)
    randomise(network)
    outputs(base)
    network.eject()

    assert modules == {part: [(n, id(m), type(m), sorted(vars(m))) for n, m in module.named_modules()]
                       for part, module in base.parts.items()}  # fmt: skip
    assert [p.requires_grad for p in _parameters(base)] == flags
    assert [p.data_ptr() for p in _parameters(base)] == pointers
    for part, module in base.parts.items():
        after = module.state_dict()
        assert list(after) == list(values[part])
        assert all(torch.equal(after[name], value) for name, value in values[part].items())
    after_outputs = outputs(base)
    assert all(torch.equal(before[name], after_outputs[name]) for name in before)
    calls.clear()
    outputs(base)
    assert calls, "the hook on a layer that was adapted acts again"
    hook.remove()
    network.eject()  # a second time, as a `with` nest may do


@each_choice
def test_gradients_reach_exactly_the_networks_parameters(base: BaseModel, targets: str, form: str) -> None:
    network = put_on(base, targets, form=form)
    randomise(network)
    predict(base).square().mean().backward()
    ours = {id(p) for group in network.groups() for p in group.parameters}
    for part, module in base.parts.items():
        for name, parameter in module.named_parameters():
            reached = parameter.grad is not None
            if id(parameter) in ours:
                # An encoder's last layer may lie behind the states that are used, and its pooled output unused.
                assert reached or part != "unet", name
            else:
                assert (reached, parameter.requires_grad) == (False, False), name
    assert all(p.dtype == torch.float32 for group in network.groups() for p in group.parameters)
    reached = [p for group in network.groups() for p in group.parameters if p.grad is not None and p.grad.any()]
    assert len(reached) >= 0.7 * len(ours)
    network.eject()


@each_choice
def test_training_leaves_the_base_bit_identical(base: BaseModel, targets: str, form: str) -> None:
    before = {part: weights_of(module) for part, module in base.parts.items()}
    network = put_on(base, targets, form=form)
    start = network.state()
    optimizer = torch.optim.AdamW([p for group in network.groups() for p in group.parameters], lr=1e-2)
    for _ in range(3):
        predict(base).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(start[key], value) for key, value in network.state().items()), "it did train"
    network.eject()
    for part, module in base.parts.items():
        assert all(torch.equal(before[part][name], value) for name, value in module.state_dict().items())


@each_choice
def test_the_delta_added_to_the_weights_gives_the_same_output(base: BaseModel, targets: str, form: str) -> None:
    bare = outputs(base)
    network = put_on(base, targets, form=form)
    randomise(network)
    with network.scaled(0.7):
        adapted = outputs(base)
    modules = changes_of(network.state())
    network.eject()
    undo: list[tuple[nn.Module, nn.Parameter]] = []
    for part, module in base.parts.items():
        for path, layer in module.named_modules():
            weights = modules.get(f"{part}.{path.removeprefix('text_model.')}")
            if weights is not None:
                own = layer.weight
                layer.weight = nn.Parameter(own + 0.7 * weights.delta(own))
                undo.append((layer, own))
    assert len(undo) == len(modules)
    merged = outputs(base)
    for layer, own in undo:
        layer.weight = own
    for name, expected in adapted.items():
        # Sums in another order, carried through forty random layers: far below the effect itself.
        error, effect = (merged[name] - expected).norm(), (expected - bare[name]).norm()
        assert error < 1e-3 * effect, (name, float(error), float(effect))


@each_form
def test_scaled_goes_from_the_base_to_what_is_trained_and_back(base: BaseModel, form: str) -> None:
    before = outputs(base)
    network = put_on(base, "few", form=form)
    randomise(network)
    trained = outputs(base)
    with network.scaled(0.0):
        none = outputs(base)
        with network.scaled(1.0):
            inner = outputs(base)
        again = outputs(base)
    after = outputs(base)
    with pytest.raises(RuntimeError, match="stop"), network.scaled(0.5):
        raise RuntimeError("stop")
    failed = outputs(base)
    network.eject()
    for name in before:
        assert torch.equal(none[name], before[name])
        assert torch.equal(again[name], before[name])
        assert all(torch.equal(found[name], trained[name]) for found in (inner, after, failed))


@each_choice
def test_state_and_load_state_round_trip_bit_for_bit(base: BaseModel, targets: str, form: str) -> None:
    network = put_on(base, targets, form=form)
    randomise(network)
    state, expected = network.state(), outputs(base)
    parameters = [id(p) for group in network.groups() for p in group.parameters]
    randomise(network, seed=99)
    assert not torch.equal(outputs(base)["unet"], expected["unet"])
    network.load_state(state)
    assert parameters == [id(p) for group in network.groups() for p in group.parameters], "optimizers hold these"
    loaded = network.state()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert torch.equal(outputs(base)["unet"], expected["unet"])
    assert all(value.dtype == torch.float32 for value in state.values())
    network.eject()


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(base: BaseModel) -> None:
    network = put_on(base, rank=4)
    randomise(network)
    state = network.state()
    key = next(key for key in state if key.endswith("lora_up.weight"))
    for wrong, words in (
        ({name: value for name, value in state.items() if name != key}, "absent"),
        ({**state, key: state[key][:, :2]}, "same kind, rank"),
        ({**state, "unet.nowhere.lora_up.weight": state[key]}, "nowhere"),
        ({**state, key.replace("lora_up.weight", "alpha"): torch.tensor(1.0)}, "alpha"),
    ):
        with pytest.raises(PlainError, match=words):
            network.load_state(wrong)
    kept = network.state()
    assert all(torch.equal(kept[name], value) for name, value in state.items())
    network.eject()


def test_the_seed_decides_and_the_process_draws_on_as_if_nothing_had_been(base: BaseModel) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()
    states = []
    for seed in (5, 5, 6):
        network = inject(base.parts, NetworkConfig(rank=4), train_parts=("unet",), seed=seed)
        states.append(network.state())
        network.eject()
        torch.rand(3)  # the second network is made from another state of the process
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), random)
    network = put_on(base)
    assert torch.equal(torch.get_rng_state(), random)
    assert np.array_equal(np.random.get_state()[1], numpy_random)
    network.eject()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_first_weights_are_uniform_within_the_bound(base: BaseModel) -> None:
    """Variance of U(-b, b) is b^2 / 3 with b = 1 / sqrt(fan_in): He et al. 2015, eq. 14 with a leak of sqrt(5)."""
    network = put_on(base, "all", rank=64)
    for name, weights in modules_of(network.state()).items():
        fan_in = weights.down[0].numel()
        assert weights.down.abs().max() <= fan_in**-0.5
        assert weights.down.var() == pytest.approx(1 / (3 * fan_in), rel=0.1), name
        assert not weights.up.any()
    network.eject()


def test_frozen_parts_are_left_as_they_are(base: BaseModel) -> None:
    flags = {name: p.requires_grad for name, p in base.parts["text_encoder"].named_parameters()}
    network = inject(base.parts, NetworkConfig(rank=2), train_parts=("unet",), seed=0)
    assert [group.part for group in network.groups()] == ["unet"]
    assert flags == {name: p.requires_grad for name, p in base.parts["text_encoder"].named_parameters()}
    assert not any(isinstance(module, Adapter) for module in base.parts["text_encoder"].modules())
    network.eject()


def test_an_absent_part_is_told(base: BaseModel) -> None:
    with pytest.raises(PlainError, match="text_encoder_3"):
        inject(base.parts, NetworkConfig(), train_parts=("unet", "text_encoder_3"), seed=0)
    with pytest.raises(PlainError, match="no part"):
        inject(base.parts, NetworkConfig(), train_parts=(), seed=0)


def _parameters(base: BaseModel) -> list[nn.Parameter]:
    return [parameter for part in base.parts.values() for parameter in part.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_defaults_to_half_of_the_rank(kind: Kind) -> None:
    base = base_model(kind)
    network = inject(base.parts, NetworkConfig(rank=6), train_parts=("unet",), seed=0)
    assert (network.rank, network.alpha) == (6, 3.0)
    assert {float(v) for key, v in network.state().items() if key.endswith("alpha")} == {3.0}
    network.eject()
