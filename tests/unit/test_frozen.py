"""Frozen layers computed where their weights lie, and with packed copies: what torch gives, within rounding."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_trainer.contracts import Event, Finished, Network, Stepped, Told
from lora_trainer.families import frozen_product
from lora_trainer.families.frozen import Hastened, hasten
from lora_trainer.families.frozen_product import DIRECT_WEIGHTS, direct_works
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs import packing
from lora_trainer.jobs.checkpoints import newest_state
from lora_trainer.jobs.files import run_files
from lora_trainer.jobs.packing import Copies
from lora_trainer.jobs.plan import plan_run
from lora_trainer.jobs.run import Controls, run
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.memory import Room
from lora_trainer.train.rehearsal import Measured
from tests.builders.networks import base_model, predict, put_on, randomise
from tests.builders.runs import run_all, small_run
from tests.unit.test_ladder import CUDA, failing, learnt, told

Size = tuple[int, ...]
LINEAR: tuple[Callable[[], nn.Module], Size] = lambda: nn.Linear(640, 1024), (2, 4, 640)
CONVOLUTION: tuple[Callable[[], nn.Module], Size] = lambda: nn.Conv2d(96, 640, 3, padding=1), (2, 96, 2, 2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    module = build().requires_grad_(False)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=seed).to(dtype) / 10
    return module


def both_ways(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    made = module(x)
    made.backward(random(*made.shape, seed=9).to(made.dtype))
    assert x.grad is not None
    return made.detach(), x.grad


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float32) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    for first, second in zip(one, other, strict=True):
        assert first.dtype == second.dtype
        assert (first - second).norm() <= tolerance * second.norm()


@pytest.mark.parametrize("rows", [(3,), (4,), (2, 16), (1, 5, 13)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_large_linear_layer_of_few_rows_gives_torchs_results(rows: Size, bias: bool) -> None:
    module = layer(lambda: nn.Linear(700, 800, bias=bias))
    assert module.weight.numel() >= DIRECT_WEIGHTS
    expected = both_ways(module, random(*rows, 700))
    hasten(module)
    same(both_ways(module, random(*rows, 700)), expected)


def test_trained_linear_layers_stay_torchs() -> None:
    module = layer(lambda: nn.Linear(700, 800))
    hasten(module)
    module.requires_grad_(True)
    module(random(8, 700)).sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("build", "size"), [LINEAR, CONVOLUTION], ids=["linear", "convolution"])
def test_packed_copies_give_the_same_and_are_what_is_read(
    build: Callable[[], nn.Module], size: Size, dtype: torch.dtype
) -> None:
    if not direct_works(dtype):
        pytest.skip("this processor has no oneDNN product of that kind")
    module = layer(build, dtype)
    x = random(*size).to(dtype)
    expected = both_ways(module, x)
    hastened = hasten(module)
    assert hastened.worth_packing() == [], "before a pass nobody knows the rows"
    both_ways(module, x)
    count = 1 if dtype == torch.float32 else 2
    assert hastened.pack(9) == count * module.weight.numel() * module.weight.element_size()
    assert hastened.packed == count
    same(both_ways(module, x), expected, dtype)
    weight = module.weight.detach().clone()
    module.weight.data.zero_()
    kept, gradient = both_ways(module, x)
    assert gradient.abs().sum() > 0, "the backward pass reads the copy"
    assert torch.equal(kept, module.bias.expand_as(kept.movedim(1, -1)).movedim(-1, 1) if kept.dim() == 4 else
                       module.bias.expand_as(kept)) == (count == 1), "so does the forward pass in bfloat16"  # fmt: skip
    module.weight.data.copy_(weight)
    assert hastened.let_go()
    assert not hastened.let_go()
    same(both_ways(module, x), expected, dtype)


def test_with_more_rows_than_they_are_for_copies_are_left_alone() -> None:
    module = layer(LINEAR[0])
    hastened = hasten(module)
    module(random(8, 640))
    hastened.pack(1)
    many = random(100, 640)
    same(both_ways(module, many), both_ways(layer(LINEAR[0]), many))


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """What works is asked once for each dtype; here before and after a test."""
    direct_works.cache_clear()
    yield
    direct_works.cache_clear()


def test_a_processor_without_bfloat16_has_its_layers_the_plain_way(
    asked_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = frozen_product._direct_product

    def without(rows: Tensor, *more: Any) -> Tensor:
        if rows.dtype == torch.bfloat16:
            raise RuntimeError("could not create a primitive descriptor for the matmul primitive")
        return real(rows, *more)

    monkeypatch.setattr(frozen_product, "_direct_product", without)
    build, size = LINEAR
    for dtype in (torch.bfloat16, torch.float32):
        module, x = layer(build, dtype), random(*size).to(dtype)
        expected = both_ways(module, x)
        hastened = hasten(module)
        same(both_ways(module, x), expected, dtype)
        assert (hastened.worth_packing() == []) == (dtype == torch.bfloat16)


def test_at_the_end_no_circle_keeps_the_weights() -> None:
    module = layer(LINEAR[0])
    hastened = hasten(module)
    module(random(8, 640))
    hastened.pack(1)
    weight = weakref.ref(module.weight)
    gc.disable()
    try:
        hastened.end()
        del module
        assert weight() is None
    finally:
        gc.enable()


def test_without_onednns_names_everything_goes_the_plain_way(
    asked_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(frozen_product, "_direct_product", missing)
    for build, size in (LINEAR, CONVOLUTION):
        module = layer(build)
        expected = both_ways(module, random(*size))
        hastened = hasten(module)
        same(both_ways(module, random(*size)), expected)
        assert hastened.worth_packing() == []


@pytest.mark.parametrize("form", ["lora", "locon", "dora"])
def test_every_adapter_gets_the_same_gradient(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(frozen_product, "PACKED_WEIGHTS", 1)
    monkeypatch.setattr(frozen_product, "DIRECT_WEIGHTS", 1)
    found: list[dict[str, Tensor]] = []
    for packs in (None, False, True):
        base = base_model("sd1")
        hastened = hasten(base.parts["unet"]) if packs is not None else Hastened([])
        network = put_on(base, "all" if form == "locon" else "linear", form=form)
        randomise(network)
        if packs:
            predict(base)
            assert hastened.pack(1000) > 0
        predict(base).square().mean().backward()
        found.append(gradients(network))
    torchs, lying, packed = found
    assert len(torchs) > 100
    whole = torch.stack([gradient.norm() for gradient in torchs.values()]).norm()
    for name, gradient in torchs.items():  # those that are all but zero differ in torch's own ways of computing too
        for other in (lying, packed):
            assert (other[name] - gradient).norm() <= 5e-3 * gradient.norm() + 1e-5 * whole, name


def gradients(network: Network) -> dict[str, Tensor]:
    """By group and place; none is missing but the text encoders', which were not asked."""
    return {
        f"{group.part} {index}": parameter.grad.clone()
        for group in network.groups() for index, parameter in enumerate(group.parameters) if parameter.grad is not None
    }  # fmt: skip


def three() -> Hastened:
    """Layers of 2, 8 and 8 MiB that met 8, 16 and 4 rows."""
    modules = nn.ModuleList([layer(lambda out=out: nn.Linear(1024, out)) for out in (512, 2048, 2048)])
    hastened = hasten(modules)
    for module, rows in zip(modules, (8, 16, 4), strict=True):
        module(random(rows, 1024))
    return hastened


def test_the_fewest_rows_come_first_and_memory_decides_how_many() -> None:
    mega = 2**20
    for free, packed in ((18 + 2 * 7, 0), (18 + 2 * 8, 1), (18 + 2 * 10, 2), (18 + 2 * 18, 3)):
        copies = Copies(three())
        events = list(copies.decide(Measured(0, 0, Room(64 * mega, free * mega)), packing.PAY_AFTER))
        assert [each.back is not None for each in copies.hastened.layers] == [packed > 1, packed > 2, packed > 0]
        assert len(events) == (packed > 0)
        assert copies.measures() == ((f"packed {packed}",) if packed else ())


def test_a_short_run_and_an_unknown_memory_go_without() -> None:
    copies = Copies(three())
    assert not list(copies.decide(Measured(0, 0, Room(2**40, 2**40)), packing.PAY_AFTER - 1))
    assert not list(copies.decide(Measured(0, 0, None), packing.PAY_AFTER))
    assert copies.measures() == ()


def test_no_room_for_the_copies_is_told_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(three())
    real = frozen_product.Layer.pack
    monkeypatch.setattr(frozen_product.Layer, "pack", failing(real, MemoryError(), 2))
    (event,) = copies.again(["halved", "packed 3"])
    assert isinstance(event, Told)
    assert "no room" in event.text
    assert copies.hastened.packed == 0


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies for layers and runs of any size."""
    monkeypatch.setattr(frozen_product, "PACKED_WEIGHTS", 1)
    monkeypatch.setattr(packing, "PAY_AFTER", 1)


def config(folder: Path, name: str, **options: Any) -> Any:
    return small_run(folder, output__directory=str(folder / name / "lora"), output__precision="fp32", **options)


def stopped(folder: Path, name: str) -> list[Event]:
    control, events = Controls(), []
    for event in run(config(folder, name), host=Standalone(), control=control):
        events.append(event)
        if isinstance(event, Stepped) and event.step == 3:
            control.stop()
    return events


def measures(folder: Path, name: str) -> tuple[str, ...]:
    saved, _ = newest_state(run_files(str(folder / name / "lora"), None, Standalone().paths()))
    assert saved is not None
    return saved.state.measures


def test_a_resumed_run_makes_the_same_copies_whatever_memory_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: None
):
    straight = run_all(config(tmp_path, "straight"))
    assert "Packed copies of" in told(straight)
    stopped(tmp_path, "stopped")
    assert [name.split()[0] for name in measures(tmp_path, "stopped")] == ["packed"]
    monkeypatch.setattr(packing, "PAY_AFTER", 1000)  # it would not choose them now
    resumed = run_all(config(tmp_path, "stopped"), resume=True)
    assert "as before the pause" in told(resumed)
    one, other = learnt(tmp_path / "straight"), learnt(tmp_path / "stopped")
    assert all(torch.equal(one[name], other[name]) for name in one), "bit for bit"


def test_a_resumed_run_that_had_none_stays_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stopped(tmp_path, "stopped")
    monkeypatch.setattr(frozen_product, "PACKED_WEIGHTS", 1)
    monkeypatch.setattr(packing, "PAY_AFTER", 1)
    assert "Packed" not in told(run_all(config(tmp_path, "stopped"), resume=True))


def test_where_memory_runs_out_they_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: None):
    monkeypatch.setattr(DiffusionLoss, "__call__", failing(DiffusionLoss.__call__, CUDA, 4))
    events = run_all(config(tmp_path, "run"))
    assert isinstance(events[-1], Finished)
    assert "the packed copies of frozen weights are given up" in told(events)
    assert measures(tmp_path, "run")[-1:] != ("checkpointing",)
    assert not any(name.startswith("packed ") for name in measures(tmp_path, "run"))


def test_the_plan_tells_of_them(tmp_path: Path):
    few = plan_run(config(tmp_path, "few", train__steps=6), Standalone()).text()
    many = plan_run(config(tmp_path, "many", train__steps=100, data__batch_size=4), Standalone()).text()
    assert "packed copies" not in few
    assert "packed copies" in many


def test_the_plan_names_the_faster_precision_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for pays in (False, True):
        monkeypatch.setattr("lora_trainer.jobs.planned.bfloat16_pays", lambda pays=pays: pays)
        plan = plan_run(config(tmp_path, str(pays)), Standalone())
        assert ("faster with mixed_precision: bf16" in plan.text()) == pays
        assert plan.dtype == torch.float32
    asked = plan_run(config(tmp_path, "asked", train__mixed_precision="no"), Standalone())
    assert "bf16" not in asked.text()
