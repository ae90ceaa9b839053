"""A run on a model that a host holds and lends by the step."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import Event, Finished, Saved, Stepped, Told
from lora_trainer.jobs.method import advice
from lora_trainer.jobs.run import Controls, run
from lora_trainer.weights.read import open_checkpoint
from tests.builders.lender import Lender
from tests.builders.runs import run_all, small_run


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run without a base model and a folder: both are the host's to give."""
    return small_run(tmp_path, model__base="", output__directory=None, output__name="lent", data__trigger="blocks")


@pytest.fixture
def host(tmp_path: Path) -> Lender:
    small_run(tmp_path)  # writes the checkpoint
    return Lender(tmp_path / "sd1.safetensors", tmp_path / "Lora", tmp_path / "runs")


def trained(host: Lender, config: RunConfig, control: Controls | None = None) -> list[Event]:
    return list(run(config, host=host, control=control or Controls()))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as file:
        return {name: tensor.clone() for name, tensor in file.items()}


def same(first: Path, second: Path) -> bool:
    ours, theirs = tensors(first), tensors(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def from_file(tmp_path: Path) -> Path:
    """What the same run makes of the checkpoint file."""
    run_all(small_run(tmp_path, output__name="lent", data__trigger="blocks"))
    return tmp_path / "out" / "lora" / "lent.safetensors"


def test_a_lent_model_gives_the_same_file_as_its_checkpoint_and_stays_as_it_was(
    host: Lender, config: RunConfig, from_file: Path, tmp_path: Path
):
    before = {name: tensor.clone() for name, tensor in host.weights.items()}
    events = trained(host, config)
    assert (tmp_path / "Lora" / "lent.safetensors").read_bytes() == from_file.read_bytes()
    assert all(torch.equal(host.weights[name], tensor) for name, tensor in before.items())
    assert not any(tensor.requires_grad for tensor in host.weights.values())
    assert host.announced == [event.path for event in events if isinstance(event, Saved)]


def test_only_what_is_a_lora_lies_in_the_hosts_folder(host: Lender, config: RunConfig, tmp_path: Path):
    trained(host, config)
    in_loras = {path.name for path in (tmp_path / "Lora").iterdir()}
    assert in_loras == {"lent.safetensors", "lent-000002.safetensors", "lent-000004.safetensors", "lent.json"}
    in_runs = {path.name for path in (tmp_path / "runs" / "lent").iterdir()}
    assert {"lent.yaml", "logs", "lent-000006.state"} <= in_runs
    card = json.loads((tmp_path / "Lora" / "lent.json").read_text(encoding="utf-8"))
    assert (card["activation text"], card["preferred weight"], card["sd version"]) == ("blocks", 0.8, "SD1")


def test_a_second_run_of_the_name_gets_another(host: Lender, config: RunConfig, tmp_path: Path):
    trained(host, config)
    first = (tmp_path / "Lora" / "lent.safetensors").read_bytes()
    trained(host, config)
    assert (tmp_path / "Lora" / "lent.safetensors").read_bytes() == first
    assert (tmp_path / "runs" / "lent-2" / "lent-2.yaml").exists()


def test_weights_that_are_moved_about_between_steps_change_nothing(
    host: Lender, config: RunConfig, from_file: Path, tmp_path: Path
):
    def move(turn: int) -> None:
        host.weights = {name: tensor.clone() for name, tensor in host.weights.items()}

    host.each_turn = move
    trained(host, config)
    assert same(tmp_path / "Lora" / "lent.safetensors", from_file)


def test_whoever_waits_finds_no_second_reference_to_the_weights(host: Lender, config: RunConfig):
    left: list[int] = []

    watched: list[weakref.ref[np.ndarray]] = []

    def look(turn: int) -> None:
        """The memory under a tensor is an array's, which lives as long as a tensor over it does."""
        memory = [tensor.numpy().copy() for tensor in host.weights.values()]
        host.weights = dict(zip(host.weights, map(torch.from_numpy, memory), strict=True))
        gc.collect()
        left.append(sum(ref() is not None for ref in watched))
        watched[:] = [weakref.ref(array) for array in memory if array.size > 4]

    host.crowded = True
    host.each_turn = look
    trained(host, config)
    # the first turn of each part lends it; from then on nothing outlives a turn
    assert left
    assert set(left) == {0}


def test_a_run_waits_for_its_model_and_goes_on_as_if_nothing_had_been(
    host: Lender, config: RunConfig, from_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lora_trainer.train.turns.LOOK_AGAIN", 0.01)
    events: list[Event] = []
    looks = 0

    def come_and_go(turn: int) -> None:
        nonlocal looks
        done = sum(isinstance(event, Stepped) for event in events)
        host.away = done == 3 and looks < 3
        looks += host.away

    host.each_turn = come_and_go
    for event in run(config, host=host, control=Controls()):
        events.append(event)
    told = [event.text for event in events if isinstance(event, Told) and not event.text.startswith("Memory: ")]
    assert told == [
        *advice(config),
        "Waiting: another checkpoint is loaded; load this one again.", "The model is back; the training goes on.",
    ]  # fmt: skip
    assert looks == 3
    assert same(tmp_path / "Lora" / "lent.safetensors", from_file)


def test_a_run_that_waits_can_be_stopped_and_is_saved(
    host: Lender, config: RunConfig, from_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lora_trainer.train.turns.LOOK_AGAIN", 0.01)
    control = Controls()
    events: list[Event] = []
    for event in run(config, host=host, control=control):
        events.append(event)
        if isinstance(event, Stepped) and event.step == 3:
            host.away = True
        if isinstance(event, Told) and event.text.startswith("Waiting"):
            control.stop()
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.outcome, end.step) == ("stopped", 3)
    host.away = False
    list(run(config, host=host, control=Controls(), resume=True))
    assert same(tmp_path / "Lora" / "lent.safetensors", from_file)


def test_what_is_ordered_in_a_pause_is_done_in_the_pause(host: Lender, config: RunConfig, tmp_path: Path):
    control = Controls()
    steps_when_saved: list[int] = []
    seen: list[Event] = []
    for event in run(config, host=host, control=control):
        seen.append(event)
        if isinstance(event, Stepped) and event.step == 3:
            control.pause()
            control.save_now()
        if isinstance(event, Saved) and event.step == 3:
            steps_when_saved.append(sum(isinstance(each, Stepped) for each in seen))
            control.go_on()
    assert steps_when_saved == [3]
    assert (tmp_path / "runs" / "lent" / "lent-000006.state").exists()
