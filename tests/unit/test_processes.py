"""Two CPU processes started by accelerate train the LoRA that one process trains with accumulation."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.config.load import dump_yaml
from tests.builders.runs import run_all, small_run


@pytest.mark.slow
def test_two_processes_equal_one_with_accumulation(tmp_path):
    alone = small_run(
        tmp_path, data__batch_size=1, train__gradient_accumulation_steps=2, output__precision="fp32",
        output__directory=str(tmp_path / "alone" / "lora"),
    )
    run_all(alone)
    together = small_run(
        tmp_path, data__batch_size=1, output__precision="fp32", output__directory=str(tmp_path / "together" / "lora")
    )
    recipe = tmp_path / "together.yaml"
    recipe.write_text(dump_yaml(together), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lora_trainer", "train", "--config", str(recipe),
        ],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (load_file(tmp_path / name / "lora/lora.safetensors") for name in ("alone", "together"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=2e-4)
