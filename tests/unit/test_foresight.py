"""What memory a run will take is told before it begins: counted without the weights, or as the last run measured it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.contracts import Batch, Judged, TextStates
from lora_trainer.families.thrift import attention_keeps_scores, recompute_activations
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs import foresight
from lora_trainer.jobs.counting import count
from lora_trainer.jobs.events import event_of, plain
from lora_trainer.jobs.foresight import Foresight, shape_of
from lora_trainer.jobs.plan import Plan, plan_run
from lora_trainer.jobs.records import Records
from lora_trainer.jobs.registry import Registry
from lora_trainer.networks.network import inject
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.memory import Room
from tests.builders.runs import run_all, small_run, write_pictures

CPU = torch.device("cpu")


def planned(folder: Path, family: str = "sd1", **options: Any) -> Plan:
    plan = plan_run(small_run(folder, family, **options), Standalone())
    assert isinstance(plan, Plan)
    return plan


def really_saved(plan: Plan, side: int, count: int) -> int:
    """Bytes that autograd saves in a real forward pass of the real weights, once for each piece of memory."""
    base = plan.family.adopt(plan.lent, CPU, torch.float32, list(plan.rates))
    options = replace(plan.config.network, alpha=plan.alpha)
    network = inject(base.parts, options, train_parts=list(plan.rates), seed=1)
    if plan.config.train.gradient_checkpointing == "yes":
        for part in plan.rates:
            recompute_activations(base.parts[part])
    settings = base.parts["unet"].config
    pooled = settings.projection_class_embeddings_input_dim
    text = TextStates(
        torch.randn(count, 77, settings.cross_attention_dim), torch.randn(count, pooled - 1536) if pooled else None
    )
    batch = Batch(
        tuple(range(count)), torch.randn(count, 4, side, side), ("blocks",) * count, None if plan.text_rate else text,
        torch.zeros(count, 6), torch.ones(count),
    )  # fmt: skip
    weights = {p.untyped_storage().data_ptr() for part in base.parts.values() for p in part.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    loss = DiffusionLoss(base, 1, plan.clip_skip, 0.0, 0.0, network=network)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(batch)
    assert value.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize(("family", "more"), [
    ("sd1", {}),
    pytest.param("sdxl", {"network__targets": "all"}, marks=pytest.mark.slow),
    pytest.param("sd1", {"network__kind": "lokr", "network__targets": "linear"}, marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_the_count_is_what_autograd_really_saves(tmp_path: Path, family: str, more: dict[str, Any]):
    """But for a few copies: kernels of `meta` lay some results out otherwise than the CPU's, by torch's release."""
    plan = planned(tmp_path, family, train__text_encoder_learning_rate=0, **more)
    if attention_keeps_scores(CPU, torch.float32):
        pytest.skip("this torch's attention keeps its scores on the CPU, and nothing is counted there")
    counted = count(plan)
    real = really_saved(plan, 32, 2)  # neither of the sizes that are counted
    assert 2 * counted.plain.at(32 * 32) == pytest.approx(real, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("more", [
    {"network__kind": "dora"}, {"network__kind": "loha"}, {"network__kind": "oft"}, {"network__init": "pissa"},
    {"network__dropout": 0.1, "network__module_dropout": 0.1},
], ids=str)  # fmt: skip
def test_every_form_of_a_network_can_be_counted(tmp_path: Path, more: dict[str, Any]):
    assert count(planned(tmp_path, **more)).plain.a_cell > 0


@pytest.mark.slow
def test_what_is_trained_is_counted(tmp_path: Path):
    small, large = (planned(tmp_path, network__rank=rank) for rank in (4, 8))
    first, second = (count(plan) for plan in (small, large))
    assert second.weights == 2 * first.weights
    without = count(planned(tmp_path, train__text_encoder_learning_rate=0))
    assert first.weights > without.weights
    assert first.plain.a_sample > without.plain.a_sample, "a text encoder keeps as much for pictures of all sizes"


@pytest.mark.slow
def test_checkpointing_and_precision_change_the_count(tmp_path: Path):
    plan = planned(tmp_path, train__text_encoder_learning_rate=0)
    plainly = count(plan)
    assert plainly.checkpointed.at(1024) < 0.6 * plainly.plain.at(1024)
    half = count(replace(plan, dtype=torch.bfloat16))
    assert half.plain.a_cell == pytest.approx(plainly.plain.a_cell / 2)
    on_gpu = count(replace(plan, dtype=torch.float16, device=torch.device("cuda")))
    assert plainly.plain.a_cell / 2 < on_gpu.plain.a_cell < plainly.plain.a_cell, "norms are in float32 there"


def test_the_verdict_takes_the_first_way_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = Foresight(Records(tmp_path / "jobs"))
    large = {"data__batch_size": 4, "data__resolution": 256, "data__upscale": True}
    plan = planned(tmp_path, **large)
    assert seen.known(plan) is None, "it has to be counted first"

    def verdict(free: int) -> foresight.Foreseen:
        monkeypatch.setattr("lora_trainer.train.memory.room", lambda device: Room(2**40, free))
        found = seen.foresee(plan)
        assert found is not None
        return found

    easy = verdict(2**40)
    assert (easy.ways, easy.fits, easy.measured) == ((), True, False)
    assert easy.base == sum(  # of the file, read as float32; the text encoder is trained too
        size for name, size in sizes_of(plan) if not name.startswith("first_stage_model.")
    )
    tight = verdict(easy.whole)  # without the margin
    assert (tight.ways, tight.fits) == (("checkpointing",), True)
    assert tight.step < easy.step
    tighter = verdict(tight.whole)
    assert (tighter.ways, tighter.fits) == (("checkpointing", "pieces"), True)
    assert verdict(1).fits is False
    allowed = planned(tmp_path, **large, train__gradient_checkpointing="no")
    monkeypatch.setattr("lora_trainer.train.memory.room", lambda device: Room(2**40, easy.whole))
    found = seen.foresee(allowed)
    assert found is not None
    assert found.ways == ("pieces",), "what was forbidden is not proposed"
    monkeypatch.setattr("lora_trainer.train.memory.room", lambda device: None)
    unknown = seen.foresee(plan)
    assert unknown is not None
    assert (unknown.fits, unknown.free, unknown.ways) == (None, None, ())
    sliced = planned(tmp_path, **large, train__attention_slicing="yes")
    assert seen.foresee(sliced) is None, "attention in slices keeps its scores, of which a line knows nothing"
    monkeypatch.setattr("lora_trainer.families.thrift.attention_keeps_scores", lambda *_: True)
    assert seen.foresee(plan) is None, "nor of a device whose attention does"


def sizes_of(plan: Plan) -> list[tuple[str, int]]:
    return [(name, torch.Size(info.shape).numel() * 4) for name, info in plan.lent.header.items()]


def test_what_a_run_measured_is_remembered_for_runs_of_its_shape(tmp_path: Path):
    write_pictures(tmp_path / "pictures")
    host = Standalone(runs=tmp_path / "runs", loras=tmp_path / "loras", checkpoints=[tmp_path])
    config = small_run(tmp_path, train__steps=1)
    registry = Registry(host)
    raw = {"base_model": config.model.base, "train_data_dir": config.data.folder, "resolution": 64, "network.rank": 4}
    plan = registry.plan(raw)
    assert isinstance(plan, Plan)
    assert registry.memory(plan, count=False) is None
    judged = next(event for event in run_all(config) if isinstance(event, Judged))
    assert judged.step > 0 < judged.network
    assert event_of(plain(judged)) == judged
    seen = Foresight(Records(tmp_path / "jobs"))
    seen.learn(shape_of(plan), replace(judged, measures=("idle parts", "checkpointing")))
    again = Foresight(Records(tmp_path / "jobs")).known(plan)
    assert again is not None
    assert again.measured
    assert (again.step, again.network) == (judged.step, judged.network + judged.kept)
    assert again.ways == ("checkpointing",)
    other = registry.plan({**raw, "batch_size": 1})
    assert isinstance(other, Plan)
    assert seen.known(other) is None
    longer = replace(plan, steps=7, seed=5)
    assert shape_of(longer) == shape_of(plan), "what decides nothing of the memory does not matter"


def test_a_job_teaches_the_registry(tmp_path: Path):
    host = Standalone(runs=tmp_path / "runs", loras=tmp_path / "loras", checkpoints=[tmp_path])
    small_run(tmp_path)
    raw = {
        "base_model": "sd1", "train_data_dir": str(tmp_path / "pictures"), "resolution": 64, "train.steps": 1,
        "network.rank": 4, "output_name": "learnt",
    }  # fmt: skip
    registry = Registry(host)
    job = registry.submit(raw)
    until = time.monotonic() + 60
    while not job.ended and time.monotonic() < until:
        time.sleep(0.05)
    assert job.state == "done", job.message
    plan = registry.plan(raw)
    assert isinstance(plan, Plan)
    found = registry.memory(plan, count=False)
    assert found is not None
    assert found.measured
    registry.close(10)
