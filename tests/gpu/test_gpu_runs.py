"""Whole runs on a CUDA device in each precision; skipped, in words, where there is none."""

import pytest
import torch

from lora_trainer.contracts import Finished, Skipped, Stepped
from tests.builders.runs import run_all, small_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_ends_well_in_each_precision(tmp_path, family, precision, checkpointing):
    events = run_all(small_run(
        tmp_path, family, train__mixed_precision=precision, train__gradient_checkpointing=checkpointing,
        train__learning_rate=1e-4,
    ))  # fmt: skip
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.outcome == "done", end.text
    assert not any(isinstance(event, Skipped) and event.in_a_row for event in events)
    assert all(event.memory > 0 for event in events if isinstance(event, Stepped))


def test_losses_agree_with_the_cpu(tmp_path, monkeypatch):
    on_gpu = [e.loss for e in run_all(small_run(tmp_path, train__mixed_precision="no")) if isinstance(e, Stepped)]
    monkeypatch.setattr("lora_trainer.hosts.standalone.Standalone.device", lambda self: torch.device("cpu"))
    config = small_run(tmp_path, train__mixed_precision="no", output__directory=str(tmp_path / "cpu" / "lora"))
    on_cpu = [e.loss for e in run_all(config) if isinstance(e, Stepped)]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)
