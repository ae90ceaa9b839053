"""A file is written whole or not at all, with the same bytes for the same input, and reads back everywhere."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from lora_trainer.contracts import PlainError, TensorInfo
from lora_trainer.weights.hashes import data_hash, file_hash, legacy_file_hash, lora_hashes
from lora_trainer.weights.read import open_checkpoint, read_header, read_metadata
from lora_trainer.weights.write import free_name, remove_leftovers, write_safetensors, write_stream

ROOT = Path(__file__).parents[2]


def some_tensors(seed: int = 5) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "z.lora_up.weight": torch.randn(6, 4, generator=rng).half(),
        "a.lora_down.weight": torch.randn(4, 9, generator=rng).bfloat16(),
        "b.float": torch.randn(3, 2, 1, 1, generator=rng),
        "b.alpha": torch.tensor(8.0),
        "view": torch.randn(4, 6, generator=rng).T[1:],
        "ids": torch.arange(5),
        "flags": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
        "quarter": torch.randn(4, generator=rng).to(torch.float8_e4m3fn),
    }


NOTES = {"ss_output_name": "a “cat”", "ss_network_dim": "4", "modelspec.title": "猫"}


def test_what_is_written_reads_back(tmp_path: Path):
    path = tmp_path / "new folder" / "x.safetensors"
    tensors = some_tensors()
    write_safetensors(path, tensors, NOTES)
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].float(), tensor.float())
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata() == NOTES
    assert read_metadata(path) == NOTES
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_bytes_are_the_librarys_but_for_the_order_of_notes(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    tensors = {name: t.contiguous() for name, t in some_tensors().items()}
    for notes in ({}, {"one": "note"}):  # with at most one note the library has no order to choose
        write_safetensors(path, tensors, notes)
        assert path.read_bytes() == save(tensors, metadata=notes or None)


def test_same_input_same_bytes_whatever_the_order(tmp_path: Path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    tensors = some_tensors()
    write_safetensors(first, tensors, NOTES)
    write_safetensors(second, dict(reversed(tensors.items())), dict(reversed(NOTES.items())))
    assert first.read_bytes() == second.read_bytes()


def test_a_stream_in_any_order_gives_the_same_file_and_holds_one_tensor(tmp_path: Path):
    tensors = some_tensors()
    whole, streamed = tmp_path / "whole.safetensors", tmp_path / "streamed.safetensors"
    write_safetensors(whole, tensors, NOTES)
    header = read_header(whole)
    alive: list[int] = []

    def come():
        for name in reversed(list(tensors)):
            alive.append(1)
            yield name, tensors[name].clone()

    write_stream(streamed, header, come(), NOTES)
    assert streamed.read_bytes() == whole.read_bytes()
    assert len(alive) == len(tensors)


@pytest.mark.parametrize(
    ("come", "expected"),
    [
        ([("a", torch.ones(3))], "a came as"),
        ([("a", torch.ones(2).half())], "a came as"),
        ([("a", torch.ones(2)), ("a", torch.ones(2))], "a came as"),
        ([("c", torch.ones(2))], "c came as"),
        ([("a", torch.ones(2))], "never came: .'b'."),
    ],
)
def test_a_stream_that_breaks_its_word_writes_nothing(tmp_path: Path, come: list, expected: str):
    path = tmp_path / "x.safetensors"
    path.write_text("older")
    header = {"a": TensorInfo("F32", (2,)), "b": TensorInfo("F32", (1,))}
    with pytest.raises(ValueError, match=expected):
        write_stream(path, header, come, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_text() == "older"


def test_a_large_file_is_streamed_without_holding_it(tmp_path: Path):
    """A merge of a checkpoint reads, adds and writes tensor by tensor: 96 MiB pass through with little memory."""
    code = """
import resource, sys, torch
from pathlib import Path
from lora_trainer.contracts import TensorInfo
from lora_trainer.weights.write import write_stream
header = {f"t{i}": TensorInfo("F32", (1 << 20,)) for i in range(24)}
write_stream(Path(sys.argv[1]), {"t": TensorInfo("F32", (1,))}, [("t", torch.ones(1))], {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_stream(Path(sys.argv[1]), header, ((name, torch.full((1 << 20,), 2.0)) for name in header), {})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.safetensors")], cwd=ROOT, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert int(done.stdout) < 24 * 1024  # KiB; the file has 96 MiB


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from lora_trainer.contracts import PlainError
from lora_trainer.weights.write import write_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    write_safetensors(Path(sys.argv[1]), {"a": torch.ones(1 << 20)}, {})
except PlainError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_older_file(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, some_tensors(), NOTES)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], cwd=ROOT, check=True, capture_output=True,
                          text=True)  # fmt: skip
    assert done.stdout == (
        f"{path} could not be written: the disk is full; what was there before is unharmed, so free some space.\n"
    )
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


SLOW_WRITER = """
import sys, time, torch
from pathlib import Path
from lora_trainer.contracts import TensorInfo
from lora_trainer.weights.write import write_stream
def slow():
    for i in range(1000):
        yield f"t{i}", torch.full((1 << 16,), float(i))
        if i == 40:
            print("in the middle", flush=True)
        time.sleep(0.001)
write_stream(Path(sys.argv[1]), {f"t{i}": TensorInfo("F32", (1 << 16,)) for i in range(1000)}, slow(), {})
"""


def test_killed_in_the_middle_leaves_the_older_file(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, some_tensors(), NOTES)
    before = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in the middle\n"
        time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    left = [p for p in tmp_path.iterdir() if p != path]
    assert [p.suffix for p in left] == [".part"]  # a host's scan takes .safetensors, .ckpt and .pt
    assert remove_leftovers(tmp_path) == left
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_places_that_cannot_be_written_are_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    for path, expected in [
        (tmp_path / "file" / "x.safetensors", "a file stands where its folder should be"),
        (tmp_path / "folder.safetensors", "a folder of that name is in its place"),
        (Path("/proc/x.safetensors"), "could not be written"),
        (tmp_path / ("x" * 300), "could not be written (File name too long)"),
    ]:
        with pytest.raises(PlainError) as caught:
            write_safetensors(path, {"a": torch.ones(1)}, {})
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.safetensors"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder_is_told(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PlainError, match="closed to this user"):
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {})
    tmp_path.chmod(0o700)


def test_an_opened_file_may_be_replaced(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.full((4,), 3.0)}, {})
    with open_checkpoint(path) as checkpoint:
        lent = checkpoint["a"]
        write_safetensors(path, {"a": torch.full((4,), 5.0)}, {})
        assert lent.tolist() == [3.0] * 4
    with open_checkpoint(path) as checkpoint:
        assert checkpoint["a"].tolist() == [5.0] * 4


def test_a_dtype_unknown_to_the_format_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="complex128"):
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(1, dtype=torch.complex128)}, {})
    assert not list(tmp_path.iterdir())


def test_free_names(tmp_path: Path):
    path = tmp_path / "cat.v1.safetensors"
    assert free_name(path) == path
    path.touch()
    assert free_name(path).name == "cat.v1-2.safetensors"
    (tmp_path / "cat.v1-2.safetensors").mkdir()
    assert free_name(path).name == "cat.v1-3.safetensors"
    (tmp_path / "run").mkdir()
    assert free_name(tmp_path / "run").name == "run-2"


def test_hashes_are_those_of_the_file_that_kohya_would_make():
    """Expected values by the definition: the library's own bytes for the tensors and the ss_ notes alone."""
    tensors = {"a": torch.randn(1 << 18, generator=torch.Generator().manual_seed(9)), "b": torch.arange(7)}
    notes = {"ss_seed": "3", "modelspec.title": "x"}
    raw = save(tensors, metadata={"ss_seed": "3"})
    start = 8 + int.from_bytes(raw[:8], "little")
    assert len(raw) > 0x100000  # so that the legacy window holds bytes
    assert lora_hashes(tensors, notes) == {
        "sshs_model_hash": hashlib.sha256(raw[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8],
    }


def test_hashes_of_files(tmp_path: Path):
    tensors = {"a": torch.randn(1 << 19, generator=torch.Generator().manual_seed(9))}
    path = tmp_path / "x.safetensors"
    hashes = lora_hashes(tensors, NOTES)
    write_safetensors(path, tensors, {**NOTES, **hashes})
    raw = path.read_bytes()
    assert data_hash(path) == hashes["sshs_model_hash"]
    assert file_hash(path) == hashlib.sha256(raw).hexdigest()
    assert legacy_file_hash(path) == hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]
