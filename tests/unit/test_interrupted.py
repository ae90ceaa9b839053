"""Ctrl-C on the real command line, and how it goes on."""

import os
import signal
import subprocess
import sys

import pytest

from lora_trainer.config.load import dump_yaml
from tests.builders.runs import small_run


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_saves_says_how_to_go_on_and_resume_does(tmp_path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(dump_yaml(small_run(tmp_path, train__steps=60, output__save_steps=0)), encoding="utf-8")
    command = [sys.executable, "-m", "lora_trainer", "train", "--config", str(recipe)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = ""
    for line in running.stderr:
        said += line
        if line.startswith("step "):
            running.send_signal(signal.SIGINT)
            break
    said += running.stderr.read()
    assert running.wait(timeout=120) == 130, said
    assert "(train --resume) goes on from there" in said
    states = list((tmp_path / "out/lora").glob("lora-*.state"))
    assert len(states) == 1
    assert 0 < int(states[0].stem[-6:]) < 60
    resumed = subprocess.run(
        [*command, "--resume", "--train.steps", "60"], capture_output=True, text=True, timeout=240, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"Going on from step {int(states[0].stem[-6:])} of 60" in resumed.stderr
    assert (tmp_path / "out/lora/lora.safetensors").exists()
