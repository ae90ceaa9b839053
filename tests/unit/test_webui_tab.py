"""The doorbell of a WebUI without one: what it costs, and what stands in the tab where the page cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lora_trainer.hosts import beside
from lora_trainer.interfaces import webui

ROOT = Path(__file__).resolve().parents[2]
DOORBELL = ROOT / "scripts" / "lora_trainer_tab.py"

# A WebUI's callbacks and settings, as far as the doorbell uses them: it is rung, and what it registers is called.
RUNG = """
import runpy, sys, types
calls = types.ModuleType("modules.script_callbacks")
registered = {}
for name in ("on_ui_settings", "on_ui_tabs", "on_app_started", "on_script_unloaded"):
    setattr(calls, name, lambda call, name=name: registered.__setitem__(name, call))
sys.modules["modules"] = types.ModuleType("modules")
sys.modules["modules"].script_callbacks = sys.modules["modules.script_callbacks"] = calls
path = list(sys.path)
sys.path = [sys.argv[2], *path]  # as a WebUI does while it runs an extension's script
runpy.run_path(sys.argv[1])
sys.path = path
print(sorted(registered))
heavy = {"torch", "gradio", "PIL", "yaml", "numpy", "diffusers"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
from lora_trainer.jobs import registry  # found after its folder has left the path
"""


def test_ringing_imports_nothing_heavy_and_leaves_the_package_importable(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUNG, DOORBELL, ROOT], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["['on_app_started', 'on_ui_settings', 'on_ui_tabs']", "[]"]


def test_the_doorbell_is_short() -> None:
    assert len(DOORBELL.read_text(encoding="utf-8").splitlines()) < 40


@pytest.fixture
def gradio() -> Any:
    return pytest.importorskip("gradio", reason="gradio is not installed here; the hosts bring it")


def told(blocks: Any) -> str:
    """What the notice says, as HTML."""
    (value,) = [
        component["props"]["value"]
        for component in blocks.get_config_file()["components"]
        if component["props"].get("elem_id") == "lt_notice"
    ]
    return value


def test_what_is_missing_stands_in_the_tab(gradio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = beside.Wanted("a-package-that-nobody-has", "1.0", (1, 0), (2, 0))
    monkeypatch.setattr(beside, "WANTED", (wanted,))
    ((blocks, title, elem_id),) = webui.tabs()
    assert (title, elem_id) == ("LoRA Trainer", "lora_trainer")
    assert "A training needs a-package-that-nobody-has, which this WebUI lacks" in told(blocks)


def test_a_host_that_is_refused_is_told(gradio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modules.shared", ModuleType("modules.shared"))
    monkeypatch.setitem(sys.modules, "backend.memory_management", ModuleType("backend.memory_management"))
    ((blocks, *_),) = webui.tabs()
    assert "This WebUI is Forge" in told(blocks)
    webui.started(None, object())  # type: ignore[arg-type]  # no routes then, and no trace in the console


def test_an_error_of_the_page_is_told_as_text(gradio: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def page(registry: object, host: object) -> None:
        raise RuntimeError("<b>half an update</b>")

    broken = ModuleType("lora_trainer.interfaces.ui.page")
    broken.page = page  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, broken.__name__, broken)
    monkeypatch.chdir(tmp_path)
    ((blocks, *_),) = webui.tabs()
    assert "(RuntimeError: &lt;b&gt;half an update&lt;/b&gt;); the console has" in told(blocks)
    assert "restart the WebUI itself" in told(blocks)


def test_a_page_that_cannot_be_imported_is_told(gradio: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lora_trainer.interfaces.ui.page", ModuleType("without a page"))
    monkeypatch.chdir(tmp_path)
    ((blocks, *_),) = webui.tabs()
    assert "(ImportError: cannot import name" in told(blocks)
