"""The page in a real browser, served by a real process: from an empty form to a finished LoRA, and without a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the package gradio is not installed: the page is made with it")
pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed: no browser")

from tests.builders.browsed import MARKS, field, goto
from tests.builders.runs import write_pictures

pytestmark = MARKS

HOSTILE = "<img src=x onerror=window.hacked=1>"
SETTINGS = f"""
data.resolution: 64
network.rank: 2
train.steps: 4
train.text_encoder_learning_rate: 0
output.name: blocks
output.tensorboard: false
samples.prompts: ["a {HOSTILE} block"]
samples.sampling_steps: 1
samples.size: 64
model.base: demo
"""


def test_from_an_empty_form_to_a_lora_and_through_a_reload(server: Any, tab: Any, tmp_path: Path) -> None:
    process, address = server
    foreign: list[str] = []
    tab.on("request", lambda one: one.url.startswith((address, "data:", "blob:")) or foreign.append(one.url))
    pictures = write_pictures(tmp_path / "my pictures", count=3)
    goto(tab, address)

    tab.wait_for_selector("#lt_plan .lt-hint")
    tab.click("text=Paste settings")
    tab.fill("dialog textarea", SETTINGS)
    tab.click("dialog >> text=Use")
    tab.wait_for_selector("text=The settings are in the form.")
    tab.fill(field("data_folder"), str(tmp_path / "nowhere"))
    tab.wait_for_selector("#lt_plan .lt-fault")
    assert "nowhere does not exist" in tab.inner_text("#lt_plan")

    tab.fill(field("data_folder"), str(pictures))
    tab.wait_for_selector("#lt_plan .lt-told")
    told = tab.inner_text("#lt_plan .lt-told")
    assert told.startswith("3 images, all with captions, 64 px, 4 steps")

    tab.click("#lt_start")
    tab.wait_for_selector(".lt-job [data-state=done]", timeout=120_000)
    check_result(tab)
    assert list((tmp_path / "output").rglob("blocks.safetensors"))

    tab.reload()
    tab.wait_for_selector(".lt-job [data-state=done]")
    check_result(tab)
    tab.wait_for_function(f"document.querySelector('{field('output_name')}').value === 'blocks'")
    assert tab.evaluate("window.hacked") is None
    assert foreign == [], "nothing is loaded from elsewhere"

    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    process.kill()
    tab.wait_for_selector(".lt-lost:visible", timeout=30_000)


def check_result(tab: Any) -> None:
    assert tab.input_value(".lt-copy input") == f"a {HOSTILE} block <lora:blocks:0.8>"
    tab.wait_for_selector(".lt-picture img")
    assert "null" not in tab.inner_text("#lt_run")
    assert tab.locator(".lt-picture span").all_inner_texts()[0] == "before"
    assert re.fullmatch(r"Loss \S+, smoothed \S+, at step 4", tab.get_attribute(".lt-graph canvas", "aria-label"))
    assert "Written: blocks.safetensors" in tab.inner_text(".lt-log")
    tab.focus(".lt-graph canvas")
    tab.keyboard.press("ArrowLeft")
    assert tab.inner_text(".lt-tip strong") == "step 3"
