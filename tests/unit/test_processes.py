"""Two CPU processes started by accelerate train the LoRA that one process trains with accumulation."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from lora_trainer.config.load import dump_yaml
from tests.builders.runs import small_run, write_pictures

LAUNCH = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip


def train(recipe, *launcher):
    # One thread each, so that sums are rounded alike in both runs.
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "lora_trainer", "train", "--config", str(recipe)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_equal_one_with_accumulation(tmp_path):
    write_pictures(tmp_path / "pictures", sides=((128, 128),))  # the UNet's norms refuse one picture of one latent cell
    told = {}
    for name, accumulation, launcher in (("alone", 2, ()), ("together", 1, LAUNCH)):
        config = small_run(
            tmp_path, data__resolution=128, data__batch_size=1, train__gradient_accumulation_steps=accumulation,
            output__precision="fp32", output__directory=str(tmp_path / name / "lora"),
        )  # fmt: skip
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(dump_yaml(config), encoding="utf-8")
        told[name] = train(recipe, *launcher)
    assert told["together"].count("Done:") == 1, "one process speaks for all"
    one, two = (load_file(tmp_path / name / "lora/lora.safetensors") for name in ("alone", "together"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        # As wholes: where a gradient is all but zero, AdamW's first steps turn its rounding into a full step.
        assert (two[key] - tensor).norm() <= 2e-3 * tensor.norm(), key
