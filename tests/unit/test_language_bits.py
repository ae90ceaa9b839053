"""A language model whose base bitsandbytes, an optional package, holds in few bits: it learns as the whole one does."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from lora_trainer.contracts import Finished, Stepped
from lora_trainer.families.language.load import load
from lora_trainer.families.language.recognise import recognise
from tests.builders.language import text_run, write_model
from tests.builders.runs import run_all

pytestmark = pytest.mark.newest_only
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not here; it has 100 MB and is left to who wants it")


def wide(folder: Path) -> Path:
    """Wide enough for the blocks of 64 weights that share a scale."""
    return write_model(folder / "llama", hidden_size=128, intermediate_size=256)


@pytest.mark.parametrize(("bits", "stored"), [("8bit", torch.int8), ("4bit", torch.uint8)])
def test_the_base_is_held_in_few_bits(tmp_path: Path, bits, stored):
    model = load(recognise(wide(tmp_path)), torch.device("cpu"), torch.float32, bits).model
    weights = {name: weight for name, weight in model.named_parameters() if "_proj" in name}
    assert weights
    assert {weight.dtype for weight in weights.values()} == {stored}


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_it_learns_as_the_whole_base_does(tmp_path: Path, bits, caplog):
    wide(tmp_path)
    caplog.set_level(logging.WARNING)
    losses = {}
    for kind in ("none", bits):
        place = str(tmp_path / kind / "adapter")
        events = run_all(text_run(tmp_path, text__quantize=kind, output__directory=place, train__learning_rate=1e-3))
        assert isinstance(events[-1], Finished)
        assert events[-1].outcome == "done"
        losses[kind] = [event.loss for event in events if isinstance(event, Stepped)]
    assert losses[bits] == pytest.approx(losses["none"], rel=0.1)
    assert losses[bits] != losses["none"]
    casts = [record for record in caplog.records if "will be cast" in record.getMessage()]
    assert len(casts) <= 1
    gone_on = run_all(text_run(tmp_path, text__quantize=bits, output__directory=place, train__steps=8), resume=True)
    assert [event.step for event in gone_on if isinstance(event, Stepped)] == [7, 8]
