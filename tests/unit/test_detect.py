"""Which host a process is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.hosts import detect
from lora_trainer.hosts.a1111 import A1111
from lora_trainer.hosts.standalone import Standalone


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a WebUI whose server this process is."""
    monkeypatch.setitem(sys.modules, "modules.shared", ModuleType("modules.shared"))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_alone() -> None:
    assert isinstance(detect.host(), Standalone)


def test_a1111(webui: Path) -> None:
    (webui / "backend").mkdir()  # somebody's folder of that name
    assert isinstance(detect.host(), A1111)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("backend.memory_management", "Forge"),
        ("ldm_patched.modules.model_management", "reForge or Forge Classic"),
    ],
)
def test_forge_is_refused_in_words(webui: Path, module: str, name: str) -> None:
    file = webui.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True)
    for place in (file, webui / module.partition(".")[0] / "__init__.py"):
        place.write_text("raise AssertionError('looked up, not imported')")
    with pytest.raises(PlainError, match=f"This WebUI is {name}, and this version trains inside AUTOMATIC1111's only"):
        detect.host()


def test_forge_that_has_loaded_it(webui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "backend.memory_management", ModuleType("backend.memory_management"))
    with pytest.raises(PlainError, match="This WebUI is Forge,"):
        detect.host()
