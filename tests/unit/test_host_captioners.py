"""A1111's interrogators behind stand-ins of its modules: the order of its own steps, its lock, its settings.

The stand-ins do what modules/interrogate.py and modules/deepbooru.py of v1.10.1 do, with no model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lora_trainer.contracts import PlainError
from lora_trainer.hosts.a1111.captioners import DeepBooru, HostBlip
from lora_trainer.hosts.a1111.turn import Turn
from tests.builders.lender import Lender

NOTHING: Any = None  # what the WebUI's loader gives for a file that it found unsafe or damaged
PICTURES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]


class Lock:
    """Like modules.fifo_lock.FIFOLock as far as Turn looks into it."""

    def __init__(self, steps: list[str]) -> None:
        self._steps = steps
        self._lock = SimpleNamespace(locked=lambda: False)
        self._pending_threads: list[object] = []

    def acquire(self) -> None:
        self._steps.append("lock")

    def release(self) -> None:
        self._steps.append("unlock")


class WebUI:
    """What the interrogators touch of the WebUI."""

    def __init__(self, models: Path) -> None:
        self.steps: list[str] = []
        self.settings: dict[str, Any] = {"deepbooru_escape": True, "interrogate_deepbooru_score_threshold": 0.5}
        self.damaged = False
        self.models = models
        self.turn = Turn(Lock(self.steps))
        self.tagger = SimpleNamespace(model=None, start=self._start, stop=self._stop, tag_multi=self._tag)
        self.interrogator = SimpleNamespace(
            blip_model=None, running_on_cpu=True, load_blip_model=self._load,
            generate_caption=lambda image: self._step("describe") or f"a {image.getpixel((0, 0))}",
            send_blip_to_ram=lambda: self._step("blip to ram"),
        )  # fmt: skip

    def _step(self, name: str) -> None:
        self.steps.append(name)

    def _load(self) -> torch.nn.Module:
        self._step("load")
        if self.damaged:
            return NOTHING["model"]
        return torch.nn.Linear(1, 1)

    def _start(self) -> None:
        self._step("start")
        self.tagger.model = self.tagger.model or object()
        if self.damaged:
            NOTHING.get("tags")

    def _stop(self) -> None:
        self._step("stop")

    def _tag(self, image: Image.Image, force_disable_ranks: bool) -> str:
        assert force_disable_ranks
        self._step("tag")
        return ", ".join(f"{name}={value}" for name, value in sorted(self.settings.items()))

    def modules(self) -> dict[str, object]:
        """By name as they are imported."""
        return {
            "shared": SimpleNamespace(
                interrogator=self.interrogator, opts=SimpleNamespace(data=self.settings),
                cmd_opts=SimpleNamespace(no_half=False),
            ),
            "devices": SimpleNamespace(torch_gc=lambda: self._step("gc"), device_interrogate=torch.device("cpu")),
            "lowvram": SimpleNamespace(send_everything_to_cpu=lambda: self._step("room")),
            "torch_utils": SimpleNamespace(get_param=lambda model: next(model.parameters())),
            "deepbooru": SimpleNamespace(model=self.tagger),
            "paths_internal": SimpleNamespace(models_path=str(self.models)),
        }  # fmt: skip


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WebUI:
    made = WebUI(tmp_path)
    package = ModuleType("modules")
    monkeypatch.setitem(sys.modules, "modules", package)
    for name, module in made.modules().items():
        setattr(package, name, module)
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)  # type: ignore[arg-type]
    return made


def test_blip_is_loaded_once_used_under_the_lock_and_sent_away_each_time(webui: WebUI) -> None:
    captioner = HostBlip(webui.turn, download=True)
    assert captioner.caption(PICTURES) == ["a (255, 0, 0)", "a (0, 0, 255)"]
    assert webui.steps == ["lock", "room", "gc", "load", "describe", "describe", "blip to ram", "gc", "unlock"]
    assert webui.interrogator.dtype == torch.float32
    webui.steps.clear()
    captioner.caption(PICTURES[:1])
    assert webui.steps == ["lock", "room", "gc", "describe", "blip to ram", "gc", "unlock"]


def test_deepbooru_gives_bare_tags_and_the_settings_are_as_before(webui: WebUI) -> None:
    before = dict(webui.settings)
    (tags,) = DeepBooru(webui.turn, threshold=0.3, download=True).caption(PICTURES[:1])
    assert tags == (
        "deepbooru_escape=False, deepbooru_sort_alpha=False, deepbooru_use_spaces=False, "
        "interrogate_deepbooru_score_threshold=0.3"
    )
    assert webui.settings == before
    assert webui.steps == ["lock", "start", "tag", "stop", "unlock"]
    (tags,) = DeepBooru(webui.turn, threshold=None, download=True).caption(PICTURES[:1])
    assert tags.endswith("interrogate_deepbooru_score_threshold=0.5"), "the WebUI's own"


def test_nothing_is_fetched_that_was_not_asked_for(webui: WebUI) -> None:
    with pytest.raises(PlainError, match=r"model_base_caption_capfilt_large\.pth"):
        HostBlip(webui.turn, download=False).caption(PICTURES)
    with pytest.raises(PlainError, match=r"model-resnet_custom_v3\.pt"):
        DeepBooru(webui.turn, threshold=None, download=False).caption(PICTURES)
    assert not {"load", "start"} & set(webui.steps)
    captioners = (HostBlip(webui.turn, download=True), DeepBooru(webui.turn, threshold=None, download=True))
    lacks = [one.lacks() for one in captioners]
    assert [Path(lack.where).name for lack in lacks if lack] == [
        "model_base_caption_capfilt_large.pth", "model-resnet_custom_v3.pt",
    ]  # fmt: skip
    webui.interrogator.blip_model = webui.tagger.model = object()
    assert [one.lacks() for one in captioners] == [None, None], "what is loaded lacks nothing"
    webui.interrogator.blip_model = webui.tagger.model = None
    assert webui.steps.count("lock") == webui.steps.count("unlock") == 2
    (webui.models / "torch_deepdanbooru").mkdir()
    (webui.models / "torch_deepdanbooru" / "mine.pt").touch()
    assert DeepBooru(webui.turn, threshold=None, download=False).caption(PICTURES)


def test_a_damaged_model_is_told_and_not_taken_for_a_whole_one_later(webui: WebUI) -> None:
    webui.damaged = True
    with pytest.raises(PlainError, match="could not load its BLIP"):
        HostBlip(webui.turn, download=True).caption(PICTURES)
    with pytest.raises(PlainError, match="could not load its DeepBooru"):
        DeepBooru(webui.turn, threshold=None, download=True).caption(PICTURES)
    assert webui.tagger.model is None
    assert webui.steps[-1] == "unlock"
    assert webui.settings["deepbooru_escape"] is True


def test_a_host_without_interrogators_has_none(tmp_path: Path) -> None:
    assert Lender.captioners(object.__new__(Lender)) == ()
