"""Captioning a folder, as a job and from the command line, with a real tagger and a real BLIP of tiny size."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL.Image import Image

from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.config.surfaces import captions_table, json_schema
from lora_trainer.contracts import Event, Finished, HostCaptioner, PlainError, Prepared, Told
from lora_trainer.data.scan import scan
from lora_trainer.hosts.a1111.turn import Turn
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.interfaces.cli import main
from lora_trainer.jobs.captioning import Controls, caption_folder, plan_captions
from tests.builders.captioners import COLOURS, picture, write_blip, write_wd14
from tests.builders.fifo_lock import FIFOLock
from tests.builders.hub import served

ROOT = Path(__file__).resolve().parents[2]
SAID = {"red": "red theme, ^_^", "green": "miku (cosplay), ^_^", "blue": "blue theme, ^_^"}


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wd14(tmp_path_factory.mktemp("models") / "tagger")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """red.png, sub/green.png and blue.JPG."""
    folder = tmp_path / "my images"
    (folder / "sub").mkdir(parents=True)
    for name, colour in (("red.png", "red"), ("sub/green.png", "green"), ("blue.JPG", "blue")):
        picture(colour).save(folder / name)
    return folder


class Host(Standalone):
    """Stand-alone, with a captioner of its own that says what it is told to."""

    def __init__(self, captioner: HostCaptioner) -> None:
        super().__init__()
        self.given = captioner

    def captioners(self, *, threshold: float | None = None, download: bool = False) -> Sequence[HostCaptioner]:
        return (self.given,)


class Speaker:
    """Says the colour in the middle of each image; can be made to fail."""

    name = "host"
    makes: Literal["sentences", "tags"] = "sentences"
    batch_size = 2

    def __init__(self, *, holds: int = 99, after: int = 99, control: Controls | None = None) -> None:
        self.sizes: list[int] = []
        self.closed = False
        self._holds, self._after, self._control = holds, after, control

    def caption(self, images: Sequence[Image]) -> list[str]:
        self.sizes.append(len(images))
        if len(images) > self._holds:
            raise torch.cuda.OutOfMemoryError("too many")
        if self._control and len(self.sizes) == self._after:
            self._control.stop()
        elif not self._control and len(self.sizes) > self._after:
            raise RuntimeError("the card fell off")
        middles = [image.getpixel((image.width // 2, image.height // 2)) for image in images]
        return ["a " + list(COLOURS)[middle.index(max(middle))] for middle in middles]  # type: ignore[union-attr, arg-type]

    def lacks(self) -> None:
        """Nothing."""

    def close(self) -> None:
        self.closed = True


def run(config: CaptionConfig, host: Standalone | None = None, control: Controls | None = None) -> list[Event]:
    return list(caption_folder(config, host or Standalone(), control or Controls()))


def rows(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["filename"]: row["prompt"] for row in csv.DictReader(file)}


def test_a_table_with_a_row_for_each_image_is_written_and_read_by_a_training(folder: Path, tagger: Path) -> None:
    events = run(CaptionConfig(input=str(folder), model=str(tagger), device="cpu", batch_size=2))
    assert rows(folder / "metadata.csv") == {
        "red.png": SAID["red"], "blue.JPG": SAID["blue"], "sub/green.png": SAID["green"]
    }  # fmt: skip
    assert [event.done for event in events if isinstance(event, Prepared)] == [0, 2, 3]
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.outcome, end.step) == ("done", 3)
    assert str(folder / "metadata.csv") in end.text
    assert scan(folder).missing_captions == ()


@pytest.mark.parametrize("ending", ["txt", "caption"])
def test_text_files_are_written_beside_images(folder: Path, tagger: Path, ending: Literal["txt", "caption"]) -> None:
    run(CaptionConfig(input=str(folder), model=str(tagger), device="cpu", format=ending, trigger="zwx"))
    assert (folder / "sub" / f"green.{ending}").read_text(encoding="utf-8") == f"zwx, {SAID['green']}\n"
    assert {item.caption_source for item in scan(folder).items} == {f".{ending}"}


@pytest.mark.parametrize(
    ("existing", "red"),
    [
        ("skip", "mine, long hair"),
        ("overwrite", SAID["red"]),
        ("append", "mine, long hair, red theme, ^_^"),
        ("prepend", "red theme, ^_^, mine, long hair"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_captions_that_are_there_are_treated_as_asked(
    folder: Path, tagger: Path, existing: Literal["skip"], red: str, ending: Literal["csv", "txt"]
) -> None:
    if ending == "csv":
        (folder / "metadata.csv").write_text('filename,prompt\nred.png,"mine, long hair"\n', encoding="utf-8")
    else:
        (folder / "red.txt").write_text("mine, long hair\n", encoding="utf-8")
    run(CaptionConfig(input=str(folder), model=str(tagger), device="cpu", existing=existing, format=ending))
    captions = {item.name: item.caption for item in scan(folder).items}
    assert captions == {"red.png": red, "blue.JPG": SAID["blue"], "sub/green.png": SAID["green"]}


def test_nothing_to_do_changes_nothing_and_needs_no_model(folder: Path) -> None:
    for name in ("red", "blue", "sub/green"):
        (folder / f"{name}.txt").write_text("mine", encoding="utf-8")
    (end,) = run(CaptionConfig(input=str(folder), model="blip-large", models=str(folder / "none")))
    assert isinstance(end, Finished)
    assert end.outcome == "done"
    assert not (folder / "metadata.csv").exists()


def test_images_that_cannot_be_read_are_named_and_left_out(folder: Path, tagger: Path) -> None:
    (folder / "notes.png").write_text("no image", encoding="utf-8")
    whole = (folder / "red.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])  # its header is whole, so that only decoding tells
    events = run(CaptionConfig(input=str(folder), model=str(tagger), device="cpu"))
    told = " ".join(event.text for event in events if isinstance(event, Told))
    assert "notes.png" in told
    assert "cut.png" in told
    assert rows(folder / "metadata.csv").keys() == {"red.png", "blue.JPG", "sub/green.png"}


def test_a_stop_keeps_what_is_done_and_the_same_command_goes_on(folder: Path) -> None:
    for number in range(4):
        picture("red").save(folder / f"z{number}.png")
    control = Controls()
    speaker = Speaker(after=1, control=control)
    end = run(CaptionConfig(input=str(folder), model="host"), Host(speaker), control)[-1]
    assert isinstance(end, Finished)
    assert (end.outcome, end.step) == ("stopped", 2)
    assert "5 to go" in end.text
    assert speaker.closed
    assert len(rows(folder / "metadata.csv")) == 2
    later = Speaker()
    run(CaptionConfig(input=str(folder), model="host"), Host(later))
    assert sum(later.sizes) == 5
    assert len(rows(folder / "metadata.csv")) == 7


def test_a_failure_keeps_what_is_done(folder: Path) -> None:
    speaker = Speaker(after=1)
    with pytest.raises(RuntimeError, match="fell off"):
        run(CaptionConfig(input=str(folder), model="host"), Host(speaker))
    assert rows(folder / "metadata.csv") == {"blue.JPG": "a blue", "red.png": "a red"}
    assert speaker.closed


def test_a_batch_that_the_memory_does_not_hold_is_halved(folder: Path) -> None:
    speaker = Speaker(holds=1)
    run(CaptionConfig(input=str(folder), model="host", batch_size=3), Host(speaker))
    assert speaker.sizes == [3, 1, 2, 1, 1]
    assert rows(folder / "metadata.csv") == {"red.png": "a red", "blue.JPG": "a blue", "sub/green.png": "a green"}
    with pytest.raises(PlainError, match="more memory"):
        run(CaptionConfig(input=str(folder), model="host", existing="overwrite"), Host(Speaker(holds=0)))


class Queue(Host):
    """A host whose device is shared as a WebUI's is; counts visits."""

    def __init__(self, captioner: HostCaptioner) -> None:
        super().__init__(captioner)
        self.lock = FIFOLock()
        self.shared = Turn(self.lock)
        self.inside = False
        self.order: list[str] = []

    @contextmanager
    def visit(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self.shared:
            self.order.append("captions")
            yield

    def report(self, event: Event) -> None:
        assert self.inside


class InQueue(Speaker):
    """Looks at each batch whether the device is its own."""

    batch_size = 1

    def __init__(self, each: Callable[[], None]) -> None:
        super().__init__()
        self._each = each

    def caption(self, images: Sequence[Image]) -> list[str]:
        self._each()
        return super().caption(images)


def test_each_batch_takes_its_turn_and_who_waits_to_generate_is_next(folder: Path) -> None:
    host: Queue

    def generate() -> None:
        with host.shared:
            host.order.append("generation")

    def each() -> None:
        assert host.lock._lock.locked()
        if len(host.order) == 1:
            waiting.start()
            while not host.lock._pending_threads:
                time.sleep(0.001)

    waiting = threading.Thread(target=generate)
    host = Queue(speaker := InQueue(each))
    run(CaptionConfig(input=str(folder), model="host"), host)
    waiting.join(10)
    assert host.order == ["captions", "generation", "captions", "captions"]
    assert not host.lock._lock.locked()
    assert speaker.closed
    assert not host.inside


def test_the_hosts_own_interrupt_stops_and_keeps_what_is_done(folder: Path) -> None:
    class Interrupted(Host):
        def interrupted(self) -> bool:
            return len(speaker.sizes) == 1

    speaker = Speaker()
    end = run(CaptionConfig(input=str(folder), model="host"), Interrupted(speaker))[-1]
    assert isinstance(end, Finished)
    assert (end.outcome, end.step) == ("stopped", 2)
    assert len(rows(folder / "metadata.csv")) == 2


def test_images_of_which_nothing_is_said_are_told(folder: Path, tagger: Path) -> None:
    events = run(CaptionConfig(input=str(folder), model=str(tagger), device="cpu", threshold=1.0,
                               character_threshold=0.5, trigger="zwx"))  # fmt: skip
    warning = next(event.text for event in events if isinstance(event, Told))
    assert "2 images" in warning
    assert "lower the threshold" in warning
    assert rows(folder / "metadata.csv") == {"sub/green.png": "zwx, miku (cosplay)"}


def test_captions_that_a_training_would_not_see_are_told_before(folder: Path, tagger: Path) -> None:
    (folder / "metadata.csv").write_text("filename,prompt\nred.png,mine\n", encoding="utf-8")
    plan = plan_captions(CaptionConfig(input=str(folder), format="txt", existing="overwrite"))
    assert any("metadata.csv are asked before .txt" in warning for warning in plan.warnings)
    assert not plan_captions(CaptionConfig(input=str(folder), format="txt")).warnings, "red.png is skipped"
    picture("blue").save(folder / "sub" / "green.webp")
    plan = plan_captions(CaptionConfig(input=str(folder), format="txt"))
    assert len(plan.work) == 2
    assert any("sub/green.webp" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "No folder of images is named"),
        ({"input": "{folder}/none"}, "does not exist"),
        ({"input": "{folder}", "output": "{folder}/captions.json"}, "let it end in .csv"),
        ({"input": "{folder}", "output": "elsewhere", "format": "txt"}, "captions go beside the images"),
        ({"input": "{folder}", "model": "{tagger}", "device": "warp"}, "device is 'warp'"),
        ({"input": "{folder}", "model": "deepbooru"}, "a WebUI's own"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(
    folder: Path, tagger: Path, options: dict[str, str], told: str
) -> None:
    given = {name: text.format(folder=folder, tagger=tagger) for name, text in options.items()}
    with pytest.raises(PlainError, match=told):
        run(CaptionConfig(**given))  # type: ignore[arg-type]
    assert sorted(path.name for path in folder.iterdir()) == ["blue.JPG", "red.png", "sub"]


def test_a_folder_closed_to_writing_is_told_before_a_model_is_looked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access  # folders are never closed to root, as whom tests may run
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and real(path, mode))
    with pytest.raises(PlainError, match="closed to writing"):
        run(CaptionConfig(input=str(folder), model="blip-base", models=str(folder / "none")))


def test_a_table_elsewhere_is_found_by_its_name(folder: Path, tagger: Path, tmp_path: Path) -> None:
    table = tmp_path / "tables" / "mine.csv"
    end = run(CaptionConfig(input=str(folder), output=str(table), model=str(tagger), device="cpu"))[-1]
    assert isinstance(end, Finished)
    assert f"data.metadata {table}" in end.text
    assert scan(folder, table).missing_captions == ()
    config = CaptionConfig(input=str(folder), output=str(table), model=str(tagger), device="cpu")
    assert plan_captions(config).work == (), "all of them are there"


# --- command line ----------------------------------------------------------------------------------------------------


def test_the_command_of_the_articles_with_no_network(tmp_path: Path, folder: Path) -> None:
    write_blip(tmp_path / "models" / "captioners" / "blip-base")
    blocked = (
        "import socket, sys\n"
        "def refused(*a, **k): raise AssertionError('the network was touched')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from lora_trainer.interfaces.cli import main\n"
        "sys.exit(main())\n"
    )
    words = ["caption", "--input", str(folder), "--output", str(folder / "metadata.csv"), "--model", "blip-base"]
    # Allowed to fetch as far as the libraries are concerned: it is we who do not.
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", blocked, *words], cwd=tmp_path, env=surroundings,
                              capture_output=True, text=True, encoding="utf-8", check=False)  # fmt: skip

    done = called(*words)
    assert done.returncode == 0, done.stderr
    assert rows(folder / "metadata.csv") == {
        "red.png": "a red picture", "blue.JPG": "a blue picture", "sub/green.png": "a green picture"
    }  # fmt: skip
    assert "Preparing captions: 3 of 3, " in done.stderr
    assert "it/s" in done.stderr
    lacking = called("caption", "--input", str(folder), "--model", "blip-large", "--existing", "overwrite")
    assert lacking.returncode == 2
    assert "1.9 GB" in lacking.stderr
    assert "Traceback" not in lacking.stderr
    assert "Wrote 3 captions" in done.stderr


def test_a_file_of_settings_flags_over_it_and_a_dry_run(
    folder: Path, tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "captions.yaml"
    settings.write_text(
        json.dumps({"input": str(folder), "model": str(tagger), "trigger": "zwx", "format": "csv", "device": "cpu"}),
        encoding="utf-8",
    )
    words = ["caption", "--config", str(settings), "--format", "txt", "--blacklist", "^_^", "blue theme"]
    assert main([*words, "--dry-run"]) == 0
    page = capsys.readouterr().out
    assert "to describe   3" in page
    assert ".txt files beside" in page
    assert "ready" in page
    assert not (folder / "red.txt").exists()
    assert main(words) == 0
    assert (folder / "red.txt").read_text(encoding="utf-8") == "zwx, red theme\n"
    assert (folder / "blue.txt").read_text(encoding="utf-8") == "zwx\n"


def test_bad_words_are_bad_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--input", str(folder), "--models", str(tmp_path)]) == 2
    assert "1.0 GB" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("caption_prefix: a\nthreshold: 3\n", encoding="utf-8")
    assert main(["caption", "--config", str(tmp_path / "bad.yaml"), "--input", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "did you mean prefix?" in told
    assert "outside of 0 to 1" in told


def test_help_and_schema_and_page_come_from_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["caption", "--help"])
    page = capsys.readouterr().out
    for name, entry in json_schema(CaptionConfig)["properties"].items():
        assert name == "version" or f"--{name} " in page
        assert name == "version" or entry["description"]
    assert captions_table() in (ROOT / "docs" / "captions.md").read_text(encoding="utf-8")


def test_a_model_is_fetched_when_asked_for_and_a_broken_download_is_continued(tmp_path: Path, folder: Path) -> None:
    repository = write_wd14(tmp_path / "published")
    (repository / "README.md").write_text("not needed", encoding="utf-8")
    (repository / "model.safetensors").write_bytes(b"the same for another library")
    model = repository / "model.onnx"
    model.write_bytes(model.read_bytes() + _padding(12 << 20))  # longer than the pieces in which it is fetched, 10 MiB
    command = [sys.executable, "-m", "lora_trainer", "caption", "--input", str(folder), "--model", "wd14",
               "--models", str(tmp_path / "none"), "--device", "cpu", "--download", "true"]  # fmt: skip
    with served(repository, "SmilingWolf/wd-swinv2-tagger-v3") as hub:
        surroundings = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hub"),
                        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}  # fmt: skip
        hub.breaks_at["model.onnx"] = 11 << 20
        calls = []
        for _ in range(2):
            calls.append(subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True,
                                        encoding="utf-8", check=False))  # fmt: skip
            if calls[-1].returncode == 0:
                break
    assert calls[-1].returncode == 0, calls[-1].stderr
    assert rows(folder / "metadata.csv")["red.png"] == SAID["red"]
    told = calls[-1].stdout + calls[-1].stderr
    assert "Fetching SmilingWolf/wd-swinv2-tagger-v3." in told
    assert "Preparing captioner: 13 of 13 MB" in told
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith("/model.onnx")]
    assert any(asked.startswith("bytes=") and asked != "bytes=0-" for asked in ranges), "goes on where it broke"
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.asked if "/resolve/" in path}
    assert fetched == {"model.onnx", "selected_tags.csv"}


def _padding(size: int) -> bytes:
    """Protobuf that every reader passes over: ModelProto.doc_string (field 6) of that many letters."""
    count, length = size, []
    while count > 0x7F:
        length.append(count & 0x7F | 0x80)
        count >>= 7
    return bytes([6 << 3 | 2, *length, count]) + b"x" * size
