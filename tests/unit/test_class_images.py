"""Pictures of a class: drawn by the base model, counted, captioned, and taken up where it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_trainer.config.class_images import ClassImagesConfig
from lora_trainer.config.load import ConfigError
from lora_trainer.config.surfaces import captions_table
from lora_trainer.contracts import Event, Finished, HostPaths, LentModel, PlainError, Prepared, SampleOrder
from lora_trainer.families.registry import lend_file
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.interfaces.cli import main
from lora_trainer.jobs.class_images import Controls, draw_class_images, plan_class_images
from lora_trainer.jobs.plan import plan_run
from lora_trainer.jobs.registry import Registry
from tests.builders.runs import small_run

PROMPT = "a photo of a cat"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    small_run(folder)
    return folder / "sd1.safetensors"


def wanted(base: Path | str, folder: Path, **options: Any) -> ClassImagesConfig:
    options = {"count": 3, "size": 64, "sampling_steps": 1} | options
    return ClassImagesConfig(base=str(base), folder=str(folder), prompt=PROMPT, **options)


def drawn(config: ClassImagesConfig, host: Standalone | None = None, control: Controls | None = None) -> list[Event]:
    return list(draw_class_images(config, host or Standalone(), control or Controls()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


class Painting(Standalone):
    """A host that lends its base and draws with it, a plain picture of the seed's shade; seen by what it was asked."""

    draws = True

    def __init__(self, own: Path, interrupted_at: int | None = None) -> None:
        super().__init__()
        self.own = own
        self.orders: list[SampleOrder] = []
        self.loras: list[Path | None] = []
        self._interrupted_at = interrupted_at

    def base_file(self, base: str) -> Path | None:
        return super().base_file(base) if base else None

    def lend(self) -> LentModel:
        return replace(lend_file(self.own), owned=False)

    def draw(self, order: SampleOrder, lora: Path | None) -> Sequence[Image.Image]:
        self.orders.append(order)
        self.loras.append(lora)
        if len(self.orders) == self._interrupted_at:
            return []
        image = Image.new("RGB", (order.size, order.size), (order.seed, 0, 0))
        image.info["parameters"] = f"{order.prompts[0]}\nSteps: {order.sampling_steps}"
        return [image]


def test_the_engine_draws_what_a_training_then_takes(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    *events, end = drawn(wanted(base, folder))
    assert events == [Prepared("class images", done, 3) for done in range(4)]
    assert isinstance(end, Finished)
    assert (end.outcome, end.step) == ("done", 3)
    assert "data.regularization" in end.text
    assert names(folder) == [f"class_{n:05}.{kind}" for n in range(3) for kind in ("png", "txt")]
    assert (folder / "class_00001.txt").read_text() == f"{PROMPT}\n"
    pictures = [np.asarray(Image.open(folder / f"class_{n:05}.png")) for n in range(3)]
    assert pictures[0].shape == (64, 64, 3)
    assert not np.array_equal(pictures[0], pictures[1])
    plan = plan_run(small_run(tmp_path, data__regularization=str(folder)), Standalone())
    assert "3 images, each step's share half" in plan.text()


def test_stopping_loses_nothing_and_a_second_order_draws_the_rest_as_it_would_have_been(
    base: Path, tmp_path: Path
) -> None:
    control = Controls()
    stopped = draw_class_images(wanted(base, tmp_path / "a"), Standalone(), control)
    for event in stopped:
        if event == Prepared("class images", 1, 3):
            control.stop()
        last = event
    assert isinstance(last, Finished)
    assert (last.outcome, last.step) == ("stopped", 1)
    assert "1 of 3 images are in" in last.text
    assert drawn(wanted(base, tmp_path / "a"))[0] == Prepared("class images", 1, 3)
    drawn(wanted(base, tmp_path / "b"))
    for name in names(tmp_path / "b"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (end,) = drawn(wanted(base, tmp_path / "a"))
    assert isinstance(end, Finished)
    assert "3 images already; nothing was drawn" in end.text


def test_a_host_draws_with_its_own_model_and_without_a_lora(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    (folder / "mask").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "mine.JPG")
    Image.new("L", (8, 8)).save(folder / "mask" / "mine.png")  # counts for nothing
    (folder / "class_00001.png").write_bytes(b"there, whatever it is")
    host = Painting(base)
    drawn(wanted("", folder, count=5, seed=7, negative="dog", guidance=5.0), host)
    assert [order.seed for order in host.orders] == [7, 9, 10], "number 1 is taken"
    assert {(order.prompts, order.negative, order.size, order.guidance) for order in host.orders} == {
        ((PROMPT,), "dog", 64, 5.0)
    }
    assert host.loras == [None] * 3
    with Image.open(folder / "class_00003.png") as image:
        assert image.info["parameters"].startswith(PROMPT)
    assert (folder / "class_00001.png").read_bytes() == b"there, whatever it is"
    end = drawn(wanted("", tmp_path / "other"), Painting(base, interrupted_at=2))[-1]
    assert isinstance(end, Finished)
    assert (end.outcome, end.step) == ("stopped", 1)
    host.orders.clear()
    drawn(wanted(base, tmp_path / "file", count=1), host)
    assert host.orders == [], "another base than the host's own is none that it could draw with"
    assert names(tmp_path / "file") == ["class_00000.png", "class_00000.txt"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt": " "}, "No prompt is given"),
        ({"folder": ""}, "No folder is named"),
        ({"size": 100}, "sides of pictures are multiples of 8"),
        ({"base": ""}, "No base model is named"),
        ({"folder": __file__}, "is a file: name a folder"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_is_written(
    base: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    given = {"base": str(base), "folder": str(tmp_path / "class"), "prompt": PROMPT, "size": 64} | options
    with pytest.raises(PlainError, match=told):
        plan_class_images(ClassImagesConfig(**given), Standalone())
    assert not (tmp_path / "class").exists()


def test_it_takes_its_turn_in_the_queue(base: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "pictures"
    allowed.mkdir()

    class Fenced(Painting):
        def paths(self) -> HostPaths:
            return HostPaths(None, tmp_path / "runs", (base.parent,), (allowed,))

    host = Fenced(base)
    registry = Registry(host)
    raw = {"prompt": PROMPT, "folder": str(allowed / "class"), "count": 2, "size": 64}
    job = registry.draw_class_images(raw)
    assert (job.task.kind, job.name, job.total_steps) == ("class_images", "class", 2)
    until_over(job)
    assert (job.state, job.step) == ("done", 2), job.message
    assert len(names(allowed / "class")) == 4
    with pytest.raises(PlainError, match=r"folder is .* outside of the folders that this server allows"):
        registry.draw_class_images(raw | {"folder": str(tmp_path / "elsewhere")})
    with pytest.raises(PlainError, match=r"base is .* outside of the folders"):
        registry.draw_class_images(raw | {"base_model": "/etc/passwd"})
    with pytest.raises(ConfigError, match="count"):
        registry.draw_class_images(raw | {"count": 0})
    registry.close(10)


def until_over(job: Any) -> None:
    import time

    until = time.monotonic() + 30
    while not job.ended and time.monotonic() < until:
        time.sleep(0.02)


def test_the_command_draws_or_tells_what_it_would(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["class-images", "--base", str(base), "--prompt", PROMPT, "--folder", str(tmp_path / "c"), "--count", "1",
             "--size", "64", "--sampling_steps", "1"]  # fmt: skip
    assert main([*words, "--dry-run"]) == 0
    assert "to draw     1 of 64 x 64 px, beside 0 that are there" in capsys.readouterr().out
    assert main(words) == 0
    assert names(tmp_path / "c") == ["class_00000.png", "class_00000.txt"]
    assert main([*words[:-1], "0"]) == 2
    assert "sampling_steps" in capsys.readouterr().err


def test_the_table_of_its_settings_is_the_generated_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "crops.md").read_text(encoding="utf-8")
    assert captions_table(ClassImagesConfig) in page
