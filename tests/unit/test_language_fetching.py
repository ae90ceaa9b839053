"""A language model that is named as on the hub: fetched where that is asked for, told as it comes, not from afar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from lora_trainer.config.load import ConfigError, load
from lora_trainer.contracts import PlainError, Prepared
from lora_trainer.families.language import place
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.asking import answers_chore
from lora_trainer.jobs.fetching import fetching_chore
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.limits import load_allowed
from lora_trainer.jobs.registry import Registry
from lora_trainer.jobs.run import Controls, run
from lora_trainer.jobs.tasks import Chore
from lora_trainer.weights import fetching
from tests.builders.hub import served
from tests.builders.language import write_model, write_pairs

ROOT = Path(__file__).resolve().parents[2]
NAME = "somebody/small-llama"
RUN = {"task": "text-generation", "model.base": NAME, "model.download": True, "train.steps": 1, "network.rank": 2,
       "output.tensorboard": False, "output.save_steps": 0}  # fmt: skip


def published(folder: Path) -> Path:
    """The files of a model as a hub keeps them, with what is not read here: pickles, another framework's weights."""
    write_model(folder)
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md"):
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.mark.slow  # a process of its own, since the hub's library reads its settings when it is imported
def test_a_run_fetches_what_it_reads_and_tells_how_far_it_is(tmp_path: Path):
    write_pairs(tmp_path / "texts")
    flags = [word for name, value in RUN.items() for word in (f"--{name}", str(value).lower())]
    command = [sys.executable, "-m", "lora_trainer", "train", *flags, "--data.folder", str(tmp_path / "texts"),
               "--output.directory", str(tmp_path / "out")]  # fmt: skip
    with served(published(tmp_path / "published"), NAME) as hub:
        surroundings = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hub"),
                        "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                        "NO_PROXY": "127.0.0.1"}  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Fetching {NAME}." in done.stderr
    assert "Preparing language model: 1 of 1 MB" in done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    fetched = {path.rpartition("/")[2] for _, path, _ in hub.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "tf_model.h5", "README.md"}


def test_a_model_is_fetched_before_a_run_and_not_by_its_plan(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(PlainError, match="on this machine yet; have it fetched"):
        place.place_of(NAME, ())
    events = run(load(RUN), host=Standalone(), control=Controls())
    assert next(events).text == f"Fetching {NAME}."  # type: ignore[union-attr]
    with pytest.raises(PlainError, match="could not be fetched"):  # tests are offline: see conftest
        next(events)


@pytest.mark.parametrize("index", [True, False])
def test_a_download_that_was_broken_off_is_not_taken_for_a_model(tmp_path: Path, index: bool):
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    if index:
        weights = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(weights), encoding="utf-8")
    assert not place._whole(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    assert place._whole(tmp_path) is index, "without the list of its parts nobody knows"
    (tmp_path / "model.safetensors").touch()
    assert place._whole(tmp_path)


@pytest.mark.parametrize("name", ["models/my--model", "models/a..b", "models/name.git", f"models/{'a' * 97}"])
def test_a_path_that_is_not_there_is_told_whatever_it_looks_like(name: str):
    """The hub's own check of a repository's name refuses these by an exception."""
    with pytest.raises(PlainError, match=f"There is no folder {name}"):
        place.place_of(name, ())


def test_only_what_is_read_is_fetched():
    # The listing of openai-community/gpt2, in part.
    listing = ["64-8bits.tflite", "README.md", "config.json", "flax_model.msgpack", "generation_config.json",
               "merges.txt", "model.safetensors", "onnx/config.json", "onnx/decoder_model.onnx", "pytorch_model.bin",
               "tokenizer.json", "tokenizer_config.json", "vocab.json"]  # fmt: skip
    assert place.needed(listing) == ["config.json", "generation_config.json", "merges.txt", "model.safetensors",
                                     "tokenizer.json", "tokenizer_config.json", "vocab.json"]  # fmt: skip
    assert place.needed(["config.json", "pytorch_model.bin"]) == []
    assert place.needed(["model_index.json", "v1-5-pruned.safetensors"]) == [], "no language model"
    twice = ["config.json", "consolidated.safetensors", "model-00001-of-00001.safetensors"]
    assert place.needed(twice) == ["config.json", "model-00001-of-00001.safetensors"]


def test_a_name_does_not_lead_out_of_the_hosts_folders(tmp_path: Path):
    write_model(tmp_path / "secret")
    (tmp_path / "models").mkdir()
    assert place.place_of("secret", [tmp_path]) == tmp_path / "secret"
    with pytest.raises(PlainError, match="There is no folder"):
        place.place_of("../secret", [tmp_path / "models"])


def test_what_is_given_up_is_not_fetched_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file under way arrives, and none after it."""
    asked, hold = list[str](), threading.Event()

    def download(repository: str, file: str) -> str:
        asked.append(file)
        hold.wait(10)
        return str(tmp_path / file)

    listing = [SimpleNamespace(rfilename=name, size=size) for name, size in
               (("model.safetensors", 9), ("config.json", 1), ("tokenizer.json", 2))]  # fmt: skip
    told = SimpleNamespace(siblings=listing)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: told)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    course = fetching.fetch(NAME, place.needed)
    next(course)
    course.close()
    hold.set()
    for thread in threading.enumerate():
        if thread.name == f"fetching {NAME}":
            thread.join(10)
    assert asked == ["config.json"]
    assert list(fetching.fetch(NAME, place.needed))[-1] == (12, 12)
    assert asked[1:] == ["config.json", "tokenizer.json", "model.safetensors"]


def test_nobody_from_afar_has_a_model_fetched(tmp_path: Path):
    host = Standalone(allowed=[tmp_path])
    with pytest.raises(ConfigError, match=r"model\.download asks for a model of the Hugging Face hub, which this"):
        load_allowed(RUN, host)
    for chore, given in ((fetching_chore, {"base": NAME}),
                         (answers_chore, {"base": NAME, "prompt": ["Who?"], "download": True})):  # fmt: skip
        with pytest.raises(PlainError, match="fetches for nobody from outside"):
            chore(given, host)
    at_home = Standalone()
    assert load_allowed(RUN, at_home).model.download
    chore = fetching_chore({"base": NAME}, at_home)
    assert (chore.kind, chore.name) == ("model", NAME)


def test_a_fetching_in_the_queue_tells_mb_and_what_went_wrong(tmp_path: Path):
    registry = Registry(Standalone(runs=tmp_path))
    job = registry.fetch_model({"base": NAME})
    end = time.monotonic() + 60
    while not job.ended and time.monotonic() < end:
        time.sleep(0.02)
    registry.close(5)
    assert (job.state, job.task.kind) == ("failed", "model")  # tests are offline: see conftest
    assert "could not be fetched" in job.message
    other = Job("1", {}, Chore("model", NAME, 0))
    other.begin()
    other.take(Prepared("language model", 3, 13, "MB"))
    assert (other.step, other.total_steps, other.message) == (3, 13, "3 of 13 MB of the language model")
    other.stop()
    assert other.message == "Stopping: what is under way is finished, then all is saved."


@pytest.mark.parametrize(
    "given", [{}, {"base": ""}, {"base": 3}, {"base": NAME, "to": "/etc"}, {"base": "/etc/passwd"}]
)
def test_a_fetching_takes_the_name_of_a_model_and_nothing_else(given: dict[str, object]):
    with pytest.raises(PlainError, match=r"owner/name"):
        fetching_chore(given, Standalone())
