"""Names of what a run writes, and the promise that an earlier run's files are never reused."""

import json

import pytest
import torch

from lora_trainer.jobs.checkpoints import newest_state, prune, write_state
from lora_trainer.jobs.files import run_files, untouched
from lora_trainer.train.state import TrainingState


def state(step):
    generator = torch.Generator().manual_seed(step)
    return TrainingState(
        step,
        {"unet.a.lora_down.weight": torch.randn(2, 3, generator=generator)},
        {"0.exp_avg": torch.randn(2, 3, generator=generator), "0.step": torch.tensor(float(step))},
        {"scale": 1.0, "good_steps": 0},
    )


def test_the_lora_is_named_after_the_last_part_of_the_folder(tmp_path):
    files = run_files(str(tmp_path / "out" / "my_style_lora"), None)
    assert files.lora == tmp_path / "out" / "my_style_lora" / "my_style_lora.safetensors"
    assert files.checkpoint(250).name == "my_style_lora-000250.safetensors"


def test_a_trailing_slash_does_not_empty_the_name(tmp_path):
    assert run_files(f"{tmp_path}/cat/", None).name == "cat"


def test_a_name_given_wins(tmp_path):
    assert run_files(str(tmp_path), "dog").lora == tmp_path / "dog.safetensors"


@pytest.mark.parametrize("left", ["cat.safetensors", "cat-000100.safetensors", "cat-000100.state"])
def test_a_folder_with_a_run_is_left_alone(tmp_path, left):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / left).write_bytes(b"earlier")
    files = untouched(f"{tmp_path}/cat/", None)
    assert files.folder == tmp_path / "cat-2"
    assert files.name == "cat-2"


def test_in_a_shared_folder_the_given_name_gets_the_suffix(tmp_path):
    (tmp_path / "cat.safetensors").write_bytes(b"earlier")
    assert untouched(str(tmp_path), "cat").lora == tmp_path / "cat-2.safetensors"
    assert untouched(str(tmp_path), "dog").lora == tmp_path / "dog.safetensors"


def test_a_name_that_begins_alike_is_another_run(tmp_path):
    (tmp_path / "cat-2-000100.safetensors").write_bytes(b"of cat-2")
    assert run_files(str(tmp_path), "cat").steps_saved(".safetensors") == []


def test_state_comes_back_bit_for_bit(tmp_path):
    files = run_files(str(tmp_path), "cat")
    write_state(files, state(7), {"seed": 3})
    found, told = newest_state(files)
    assert told == []
    assert found.facts == {"seed": 3}
    assert found.state.step == 7
    assert torch.equal(found.state.network["unet.a.lora_down.weight"], state(7).network["unet.a.lora_down.weight"])
    assert torch.equal(found.state.moments["0.exp_avg"], state(7).moments["0.exp_avg"])
    assert found.state.moments["0.step"].shape == ()


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_state_is_passed_over_and_named(tmp_path, damage):
    files = run_files(str(tmp_path), "cat")
    write_state(files, state(7), {})
    write_state(files, state(9), {})
    whole = files.state(9).read_bytes()
    files.state(9).write_bytes({"cut": whole[:-5], "empty": b"", "other": json.dumps({"a": 1}).encode()}[damage])
    found, told = newest_state(files)
    assert found.state.step == 7
    assert "cat-000009.state" in told[0]


def test_pruning_keeps_the_newest(tmp_path):
    files = run_files(str(tmp_path), "cat")
    for step in (1, 2, 3):
        write_state(files, state(step), {})
        files.checkpoint(step).write_bytes(b"lora")
    prune(files, 2)
    assert files.steps_saved(".state") == [2, 3]
    assert files.steps_saved(".safetensors") == [2, 3]
    prune(files, 0)
    assert files.steps_saved(".state") == [2, 3]
