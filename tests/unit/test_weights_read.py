"""Checkpoints are read lazily and safely; everything that is no checkpoint is told in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_trainer.contracts import PlainError, TensorInfo
from lora_trainer.weights.read import open_checkpoint, read_header, read_metadata
from lora_trainer.weights.write import write_safetensors

TENSORS = {
    "model.a": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
    "model.half": torch.randn(7, generator=torch.Generator().manual_seed(2)).half(),
    "model.brain": torch.randn(2, 2, generator=torch.Generator().manual_seed(3)).bfloat16(),
    "v_pred": torch.zeros(0),
    "step": torch.tensor(41),
}
HEADER = {
    "model.a": TensorInfo("F32", (3, 5)),
    "model.half": TensorInfo("F16", (7,)),
    "model.brain": TensorInfo("BF16", (2, 2)),
    "v_pred": TensorInfo("F32", (0,)),
    "step": TensorInfo("I64", ()),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"ss_output_name": "cat"})
    return path


def message(path: Path) -> str:
    with pytest.raises(PlainError) as caught:
        open_checkpoint(path)
    with pytest.raises(PlainError) as from_header:
        read_header(path)
    assert str(caught.value) == str(from_header.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_header_and_notes_of_a_file_written_by_the_library(file: Path):
    assert read_header(file) == HEADER
    assert read_metadata(file) == {"ss_output_name": "cat"}


def test_reading_a_header_imports_no_torch(file: Path):
    code = (
        "import sys; from lora_trainer.weights.read import read_header\n"
        f"assert len(read_header({str(file)!r})) == {len(HEADER)}; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_tensors_are_the_files(file: Path):
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.header == HEADER
        assert set(checkpoint) == set(TENSORS)
        assert len(checkpoint) == len(TENSORS)
        assert checkpoint.metadata == {"ss_output_name": "cat"}
        assert checkpoint.path == file
        for name, tensor in TENSORS.items():
            assert torch.equal(checkpoint[name], tensor)
            assert checkpoint[name].dtype == tensor.dtype
        with pytest.raises(KeyError):
            checkpoint["absent"]


def test_a_taken_tensor_outlives_the_file_and_never_changes_it(file: Path):
    before = file.read_bytes()
    with open_checkpoint(file) as checkpoint:
        taken = checkpoint["model.a"]
    with pytest.raises(ValueError, match="closed"):
        checkpoint["model.half"]
    taken.add_(1)
    assert torch.equal(taken, TENSORS["model.a"] + 1)
    assert file.read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory through /proc")
def test_opening_reads_no_weights(tmp_path: Path):
    path = tmp_path / "big.safetensors"
    save_file({f"t{i}": torch.full((1 << 20,), float(i)) for i in range(16)}, path)  # 64 MiB

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with open_checkpoint(path) as checkpoint:
        before = resident()
        assert float(checkpoint["t7"].sum()) == 7 * 2**20
        assert resident() - before < 20 << 20  # t7 alone has 4 MiB, all have 64


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_pickles_of_both_ages(tmp_path: Path, zipped: bool, nested: bool):
    path = tmp_path / "model.ckpt"
    content = {"state_dict": TENSORS, "global_step": 7} if nested else {**TENSORS, "note": "not a tensor"}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert read_header(path) == HEADER
    assert read_metadata(path) == {}
    with open_checkpoint(path) as checkpoint:
        assert all(torch.equal(checkpoint[name], tensor) for name, tensor in TENSORS.items())
        assert set(checkpoint) == set(TENSORS)


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path, how: str):
    trace = tmp_path / "it_ran"
    path = tmp_path / "evil.ckpt"
    evil = {"state_dict": TENSORS, "callbacks": Malicious(f"touch {trace}")}
    if how == "bare":
        path.write_bytes(pickle.dumps(evil["callbacks"], protocol=2))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how == "zip")
    text = message(path)
    assert not trace.exists()
    assert path.exists()
    assert "asks to run code" in text
    assert ".safetensors" in text
    if how == "bare":
        pickle.loads(path.read_bytes())  # the bait is real
        assert trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_and_bitten_pickles_are_told(tmp_path: Path, zipped: bool):
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": TENSORS}, whole, _use_new_zipfile_serialization=zipped)
    raw, dice, path = whole.read_bytes(), random.Random(5), tmp_path / "bitten.ckpt"
    told: list[str] = []
    for trial in range(60):
        broken = bytearray(raw[: dice.randrange(3, len(raw) - 200)] if trial % 2 else raw)
        for _ in range(3 * (1 - trial % 2)):
            broken[dice.randrange(2, len(broken))] = dice.randrange(256)
        path.write_bytes(broken)
        try:
            open_checkpoint(path).close()  # a flipped bit of a weight cannot be seen
        except PlainError as error:
            told.append(str(error))
    assert len(told) >= 30  # every cut file
    assert not any("\n" in text for text in told)


@pytest.mark.parametrize("keep", [3, 8, 60, -70, -1])
def test_a_cut_safetensors_is_told(file: Path, keep: int):
    file.write_bytes(file.read_bytes()[:keep])
    text = message(file)
    assert ("cut off" in text and "download or copy it again" in text) or keep == 3 or keep == 8


def test_a_header_promising_more_than_the_file_has_gives_both_numbers(file: Path):
    raw = file.read_bytes()
    file.write_bytes(raw[:-10])
    data = len(raw) - 8 - int.from_bytes(raw[:8], "little")
    assert f"promises {data} bytes of weights, but {data - 10} are there" in message(file)
    file.write_bytes(raw + b"\0")
    assert "damaged" in message(file)


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',  # 2 floats are 8 bytes
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        '{"a":{"dtype":"F32","shape":[1]}}',
        '{"a":{"dtype":"F32","shape":7,"data_offsets":[0,4]}}',
        '{"a":3}',
        '{"__metadata__":[],"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":',
        "{" + '"a":{' * 100_000,
    ],
)
def test_a_header_that_contradicts_itself_is_told(tmp_path: Path, header: str):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 4)
    assert "is damaged" in message(path)


def test_a_safetensors_without_tensors_is_told(tmp_path: Path):
    path = tmp_path / "hollow.safetensors"
    text = json.dumps({"__metadata__": {"a": "b"}})
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    assert "no tensors" in message(path)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"", "is empty (0 bytes)"),
        (b"GGUF\x03\0\0\0" + b"\0" * 90, "is a GGUF file for llama.cpp-style programs; image models are needed as "
         ".safetensors"),
        (b"tjgg\x01\0\0\0" + b"\0" * 90, "is a GGML file for llama.cpp-style programs"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 90, "a PNG picture"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
        (b"Hello, this is\nno model.", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (bytes(range(128, 256)), "unknown format"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_named(tmp_path: Path, start: bytes, expected: str):
    path = tmp_path / "thing.safetensors"
    path.write_bytes(start)
    assert expected in message(path)


def test_zip_folder_and_nothing(tmp_path: Path):
    archive = tmp_path / "models.ckpt"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("model.txt", "hello")
    assert "is a zip archive" in message(archive)
    archive.write_bytes(archive.read_bytes()[:20])
    assert "cut off" in message(archive)

    folder = tmp_path / "folder"
    folder.mkdir()
    assert "a folder without model_index.json" in message(folder)
    (folder / "model_index.json").write_text("{}")
    assert "diffusers folder" in message(folder)

    assert "There is no file" in message(tmp_path / "absent.safetensors")
    assert "There is no file" in message(archive / "below_a_file.safetensors")


def test_pickles_without_named_tensors_are_told(tmp_path: Path):
    path = tmp_path / "odd.pt"
    torch.save([torch.ones(2)], path)
    assert "no named tensors" in message(path)
    torch.save({"a": 1}, path)
    assert "no tensors" in message(path)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580, 0x010280])
def test_a_header_whose_length_begins_like_a_pickle_is_read_as_what_it_is(tmp_path: Path, length: int) -> None:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3)}
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, tensors, {"note": ""})
    short = int.from_bytes(path.read_bytes()[:8], "little")
    write_safetensors(path, tensors, {"note": "x" * (length - short)})
    assert path.read_bytes()[:2] == length.to_bytes(8, "little")[:2]
    with open_checkpoint(path) as found:
        assert torch.equal(found["weight"], tensors["weight"])
