"""Forms of models and data that other programs write, read through the packages that know them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_trainer.contracts import Finished
from lora_trainer.data.text.records import read_records
from lora_trainer.families.language.load import load
from lora_trainer.families.language.recognise import recognise
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.plan import plan_run
from tests.builders.gguf_file import write_gguf
from tests.builders.language import text_run, write_model, write_pairs
from tests.builders.runs import run_all

pytestmark = pytest.mark.newest_only  # the hosts' transformers read no GGUF
CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 17, 33, 64, 12]])


@pytest.mark.parametrize(("stored", "apart"), [("F32", 1e-5), ("F16", 2e-2), ("Q8_0", 0.2)])
def test_a_gguf_file_says_what_the_folder_says(tmp_path: Path, stored: str, apart: float) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed: it reads the files")
    folder = write_model(tmp_path / "llama")
    path = write_gguf(folder, tmp_path / "small.gguf", stored)
    facts = recognise(path)
    assert (facts.gguf, facts.stored) == (True, stored)
    whole = load(recognise(folder), CPU, torch.float32)
    read = load(facts, CPU, torch.float32)
    with torch.no_grad():
        difference = (whole.model(IDS).logits - read.model(IDS).logits).abs().max().item()
    assert difference < apart
    text = "a baker sells bread"
    assert read.tokenizer(text)["input_ids"] == whole.tokenizer(text)["input_ids"]


def test_a_run_on_a_gguf_file_tells_what_it_becomes_and_trains(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed: it reads the files")
    path = write_gguf(write_model(tmp_path / "llama"), tmp_path / "small.gguf", "Q8_0")
    config = text_run(tmp_path)
    config = replace(config, model=replace(config.model, base=str(path)))
    told = plan_run(config, Standalone()).text()
    assert "dequantised from Q8_0" in told
    events = run_all(config)
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "done", events[-1]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_parquet_file_holds_the_same_records_as_json_lines(tmp_path: Path) -> None:
    table = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed: it reads the files").Table
    from pyarrow import parquet

    lines = read_records(write_pairs(tmp_path / "lines"))
    (tmp_path / "columns").mkdir()
    parquet.write_table(
        table.from_pylist([dict(one.values) for one in lines.records]), tmp_path / "columns" / "pairs.parquet"
    )
    columns = read_records(tmp_path / "columns")
    assert [one.values for one in columns.records] == [one.values for one in lines.records]
    assert columns.records[0].place.startswith("pairs.parquet")
