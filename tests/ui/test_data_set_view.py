"""The view of the data set in a real browser: from a folder's name to captions changed on the disk, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the package gradio is not installed: the page is made with it")
pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed: no browser")

from tests.builders.browsed import MARKS, field, goto, serving
from tests.builders.pictures import ramp

pytestmark = MARKS

HOSTILE = "<img src=x onerror=window.hacked=1>"
COUNT = 240


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 000.png to 239.png; every fourth is "red", 001 has no caption and 002 a hostile one."""
    made = tmp_path / "my pictures"
    made.mkdir()
    for index in range(COUNT):
        ramp(96, 64, shade=index).save(made / f"{index:03}.png")
        colour = "red" if index % 4 == 0 else "blue"
        (made / f"{index:03}.txt").write_text(f"mycat, {colour}, number {index}", encoding="utf-8")
    (made / "001.txt").unlink()
    (made / "002.txt").write_text(f"mycat, {HOSTILE}", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of one server for all that is here: they differ in their folders, and its start takes the longest."""
    with serving(tmp_path_factory.mktemp("server")) as (_, address):
        yield address


@pytest.fixture
def opened(address: str, tab: Any, folder: Path) -> Any:
    """The view with that folder, which was named in the form."""
    goto(tab, address)
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.wait_for_selector("#lt_views [role=tab]")
    tab.wait_for_selector("#lt_plan .lt-hint")
    tab.fill(field("data_folder"), str(folder))
    tab.fill(field("data_trigger"), "mycat")
    tab.click("#lt_views >> text=Data set")
    tab.wait_for_selector(".lt-card .lt-fit img")
    yield tab
    assert errors == []
    assert tab.evaluate("window.hacked") is None


def card(tab: Any, name: str) -> Any:
    return tab.locator(".lt-card", has=tab.locator(f".lt-file:text-is('{name}')"))


def saved(tab: Any, name: str, folder: Path, text: str) -> None:
    """Waits for the word "saved", after which the file has to hold the text."""
    card(tab, name).locator(".lt-saved[data-state=saved]").wait_for()
    assert (folder / name).with_suffix(".txt").read_text(encoding="utf-8").strip() == text


def caption(folder: Path, number: int) -> str:
    return (folder / f"{number:03}.txt").read_text(encoding="utf-8").strip()


def test_captions_are_edited_in_place_and_never_over_another_program(opened: Any, folder: Path) -> None:
    tab = opened
    assert tab.input_value("#lt_set_folder") == str(folder)
    assert tab.inner_text(".lt-set-bar .lt-told") == "240 images, 239 with captions, captions in .txt"
    assert card(tab, "002.png").locator("textarea").input_value() == f"mycat, {HOSTILE}"
    assert card(tab, "000.png").locator(".lt-word").inner_text() == "✓ mycat"

    card(tab, "000.png").locator("textarea").fill("mycat, on a sofa")
    saved(tab, "000.png", folder, "mycat, on a sofa")
    assert (folder / "000.txt.bak").read_text(encoding="utf-8") == "mycat, red, number 0"
    card(tab, "000.png").locator("textarea").press("Enter")
    assert tab.evaluate("document.activeElement.value") == "", "Enter goes to the next caption, which is empty"
    tab.keyboard.type("a new one")
    saved(tab, "001.png", folder, "a new one")
    assert card(tab, "001.png").locator(".lt-word").inner_text() == "✗ mycat"

    (folder / "005.txt").write_text("by another program", encoding="utf-8")
    shown = "[...document.querySelectorAll('.lt-caption')].map((one) => one.value)"
    tab.wait_for_function(f"{shown}.includes('by another program')")

    for keep, expected in (("Keep mine", "mine"), ("Take theirs", "theirs")):
        tab.wait_for_timeout(300)
        card(tab, "003.png").locator("textarea").click()
        tab.keyboard.press("Control+a")
        (folder / "003.txt").write_text("theirs", encoding="utf-8")
        tab.keyboard.type("mine")
        card(tab, "003.png").locator(".lt-conflict").wait_for()
        assert "theirs" in card(tab, "003.png").locator(".lt-conflict").inner_text()
        assert caption(folder, 3) == "theirs"
        card(tab, "003.png").locator(f"text={keep}").click()
        card(tab, "003.png").locator(".lt-conflict").wait_for(state="detached")
        tab.wait_for_function(f"{shown}.includes('{expected}')")
        if keep == "Keep mine":
            saved(tab, "003.png", folder, "mine")


def test_many_captions_at_once_with_a_look_before_and_a_way_back(opened: Any, folder: Path) -> None:
    tab = opened
    tab.locator(".lt-tag:has(.lt-name:text-is('red'))").click()
    tab.wait_for_selector("text=60 of 240 shown")
    tab.click("text=Select all")
    tab.wait_for_selector("text=60 of 60 selected")
    tab.fill(".lt-bulk [data-name=find]", r"number (\d+)")
    tab.fill(".lt-bulk [data-name=replacement]", r"no. \1")
    tab.check(".lt-bulk [data-name=regex] input")
    tab.click("text=Preview…")
    tab.wait_for_selector("dialog >> text=60 captions would change")
    assert tab.locator(".lt-change ins").first.inner_text().startswith("no.")
    assert caption(folder, 4) == "mycat, red, number 4", "nothing is written before it was confirmed"
    tab.click("dialog >> text=Change 60 captions")
    tab.wait_for_selector("text=60 captions changed")
    assert [caption(folder, number) for number in (4, 5)] == ["mycat, red, no. 4", "mycat, blue, number 5"]
    tab.wait_for_selector(".lt-actions [aria-label=Undo]:enabled")
    tab.locator(".lt-shown-count").click()
    tab.keyboard.press("Control+z")
    tab.wait_for_selector(".lt-notice >> text=Undone")
    assert caption(folder, 4) == "mycat, red, number 4"

    tab.keyboard.press("Escape")
    tab.click("text=Show all")
    tab.locator(".lt-not[aria-label='without red']").click()
    tab.wait_for_selector("text=180 of 240 shown")
    tab.locator(".lt-tick").nth(1).click()
    tab.locator(".lt-open").nth(3).click(modifiers=["Shift"])
    tab.wait_for_selector("text=3 of 180 selected")


def test_thousands_need_few_elements_and_one_is_shown_large(opened: Any, folder: Path) -> None:
    tab = opened
    assert tab.locator(".lt-card").count() < 60
    tab.evaluate("document.querySelector('.lt-scroller').scrollTop = 1e9")
    card(tab, "239.png").locator("img").wait_for()
    assert tab.locator(".lt-card").count() < 60
    card(tab, "238.png").locator(".lt-open").click()
    tab.wait_for_selector(".lt-one >> text=239 of 240")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_selector(".lt-one >> text=240 of 240")
    tab.keyboard.press("Enter")
    tab.keyboard.press("End")
    tab.keyboard.type(", the last")
    tab.keyboard.press("Shift+Enter")
    tab.wait_for_selector(".lt-one >> text=239 of 240")
    whole = tab.locator(".lt-one .lt-stage .lt-fit").bounding_box()
    assert whole["width"] / whole["height"] == pytest.approx(96 / 64, abs=0.02)
    kept = tab.locator(".lt-one .lt-crop").bounding_box()
    assert kept["width"] / kept["height"] == pytest.approx(1, abs=0.02), "64 of 96 pixels: it is not enlarged"
    tab.mouse.click(whole["x"] + 2, whole["y"] + whole["height"] / 2)
    tab.wait_for_selector(".lt-one .lt-point.lt-set")
    tab.wait_for_function("document.querySelector('.lt-one .lt-crop').style.left === '0%'")
    assert (folder / "lora_trainer_focus.csv").read_text(encoding="utf-8").splitlines()[1].startswith("238.png,0.0")
    tab.keyboard.press("Escape")
    saved(tab, "239.png", folder, "mycat, blue, number 239, the last")

    tab.click(".lt-aside >> text=Check")
    finding = tab.locator(".lt-finding", has_text="Without a caption")
    finding.locator(".lt-thumbs img").wait_for()
    finding.locator("text=Show them").click()
    tab.wait_for_selector("text=1 of 240 shown")

    tab.fill("#lt_set_folder", str(folder / "nowhere"))
    tab.press("#lt_set_folder", "Enter")
    tab.wait_for_selector(".lt-set-notes .lt-fault >> text=nowhere")
    tab.click("#lt_views >> text=Train")
    assert tab.input_value(field("data_folder")) == str(folder / "nowhere")
    tab.set_viewport_size({"width": 400, "height": 800})
    tab.click("#lt_views >> text=Data set")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
