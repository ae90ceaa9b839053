"""The page in a browser within the WebUI: a data set of two thousand pictures, and what comes into it from the other
tabs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed: no browser")

from lora_trainer.data.scan import scan
from lora_trainer.demo.samples import sample_scenes
from lora_trainer.demo.scenes import draw
from tests.builders.browsed import CHROMIUM, browsing
from tests.host.webui import WebUI

pytestmark = [pytest.mark.host, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]

MANY = 2000
BARE = 12  # scenes that have no caption yet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thousand captioned pictures, one of them a copy and one transparent, and some scenes without a caption."""
    made = tmp_path_factory.mktemp("many") / "pictures"
    made.mkdir()
    random = np.random.default_rng(3)
    for index in range(MANY):
        blocks = random.integers(0, 255, (12, 8 + 4 * (index % 3), 3), dtype=np.uint8)
        image = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))
        if index == 5:
            image.putalpha(Image.new("L", image.size, 0))
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(made / f"p{index:04}.png")
        (made / f"p{index:04}.txt").write_text(f"mycat, thing {index % 9}, number {index}", encoding="utf-8")
    (made / "p1999.png").write_bytes((made / "p0000.png").read_bytes())
    for index, scene in enumerate(sample_scenes()[:BARE]):
        name = f"a_{scene.colour}_{scene.object}_{index}.png"
        draw(scene, "plain", 128, np.random.default_rng(index)).save(made / name)
    return made


@pytest.fixture
def page(sd1: WebUI) -> Iterator[Any]:
    """The WebUI in a browser; at its end nothing may have gone wrong in our scripts. gradio's may: it says "Cannot read
    properties of undefined (reading 'props')" where something is pressed while it still draws the page."""
    with browsing() as tab:
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(f"{error}\n{error.stack}"))
        tab.set_default_timeout(60_000)
        tab.goto(sd1.url)
        tab.wait_for_selector("#txt2img_send_to_lora_trainer")
        yield tab
        assert [fault for fault in faults if "lora_trainer" in fault] == []


def go(page: Any, name: str) -> None:
    page.click(f"#tabs > .tab-nav button:text-is('{name}')")


def workshop(page: Any, folder: Path) -> None:
    go(page, "LoRA Trainer")
    page.wait_for_selector("#lt_plan .lt-hint")
    for field, value in (("folder", str(folder)), ("trigger", "mycat"), ("resolution", "64")):
        page.evaluate("([id, value]) => loraTrainer.type(id, value)", [f"lt_data_{field}", value])
    page.click("#lt_views >> text=Data set")
    page.wait_for_selector(".lt-card .lt-fit img")


def notice(page: Any, text: str) -> str:
    found = page.locator(".lt-notice", has_text=re.compile(text)).first
    found.wait_for()
    return found.inner_text()


def captions(folder: Path) -> dict[str, str]:
    return {item.name: item.caption for item in scan(folder).items}


def test_two_thousand_pictures_are_captioned_edited_and_mended(page: Any, folder: Path) -> None:
    workshop(page, folder)
    page.wait_for_selector(f"text={MANY + BARE:,} images, {MANY:,} with captions")
    assert page.locator(".lt-card").count() < 60

    page.click("text=Caption with…")
    dialog = page.locator("dialog[open]")
    assert "not here: 0.9 GB" in dialog.locator(".lt-maker", has_text="BLIP of the WebUI").inner_text()
    dialog.locator(".lt-maker", has_text="Demo").locator("input").check()
    dialog.locator(".lt-primary").click()
    notice(page, f"Wrote {BARE} captions")
    said = {name: text for name, text in captions(folder).items() if name.startswith("a_")}
    right = [name for name, text in said.items() if all(word in text for word in name.split("_")[1:3])]
    assert len(right) > BARE / 2, said
    assert all(text.startswith("mycat, ") for text in said.values())

    page.wait_for_selector("text=all with captions")
    page.fill(".lt-bulk [data-name=find]", r"thing (\d)")
    page.fill(".lt-bulk [data-name=replacement]", r"object \1")
    page.check(".lt-bulk [data-name=regex] input")
    page.click("text=Preview…")
    page.click(f"dialog >> text=Change {MANY:,} captions")
    notice(page, f"{MANY:,} captions changed")
    assert captions(folder)["p0001.png"] == "mycat, object 1, number 1"
    page.click(".lt-actions [aria-label=Undo]")
    notice(page, "Undone")
    assert captions(folder)["p0001.png"] == "mycat, thing 1, number 1"

    page.click(".lt-aside >> text=Check")
    for title, remedy, told in (
        ("Exact copies", "Leave the copies out", "1 image left out"), ("Transparent", "Make masks of it", "1 mask"),
    ):  # fmt: skip
        finding = page.locator(".lt-finding", has=page.locator(f"h4 :text-is('{title}')"))
        finding.locator(".lt-thumbs img").first.wait_for()
        finding.locator(f"button:text-is('{remedy}')").click()
        page.click("dialog[open] .lt-primary")
        notice(page, told)
        finding.wait_for(state="detached")
    found = scan(folder)
    assert found.excluded == ("p0000.png",), "the copy whose caption says less"
    assert next(item.mask for item in found.items if item.name == "p0005.png") == folder / "p0005-masklabel.png"
    page.wait_for_selector(f"text={MANY + BARE - 1:,} shown")


def test_class_images_are_drawn_by_the_webui_into_any_folder_of_its_user(page: Any, folder: Path) -> None:
    workshop(page, folder)
    page.click("text=Make class images…")
    fields = page.locator("dialog[open] input")
    assert fields.nth(4).input_value() == f"{folder}_class"
    for index, value in enumerate(("a photo of a cat", "2", "64")):
        fields.nth(index).fill(value)
    page.click("dialog[open] .lt-primary")
    notice(page, "2 images are in")
    place = folder.with_name(f"{folder.name}_class")
    assert captions(place) == dict.fromkeys(("class_00000.png", "class_00001.png"), "a photo of a cat")
    with Image.open(place / "class_00001.png") as image:
        assert image.size == (64, 64)
        assert "Steps: 20" in image.info["parameters"]


def test_pictures_are_sent_from_each_tab_of_the_webui(page: Any, sd1: WebUI) -> None:
    def numbers(tab: str, **values: int) -> None:
        for name, value in values.items():
            field = page.locator(f"#{tab}_{name} input[type=number]")
            field.fill(str(value))
            field.blur()

    def generate(tab: str, prompt: str, count: int, **values: int) -> None:
        page.fill(f"#{tab}_prompt textarea", prompt)
        numbers(tab, width=64, height=64, **values)
        page.click(f"#{tab}_generate")
        thumbnails = f"document.querySelectorAll('#{tab}_gallery .thumbnails .thumbnail-item').length"
        page.wait_for_function(f"{thumbnails} >= {count}")

    def sent(tab: str) -> str:
        page.evaluate("document.querySelectorAll('#lt_notices .lt-notice').forEach((one) => one.remove())")
        page.click(f"#{tab}_send_to_lora_trainer")
        if tab == "txt2img":
            page.fill("dialog.lt-sendto input", "boats")
            page.keyboard.press("Enter")
        page.wait_for_selector("#lt_notices .lt-offer:not(.lt-sending)")
        return page.inner_text("#lt_notices .lt-offer p")

    def put(tab: str, field: str, file: Path) -> None:
        go(page, tab)
        page.set_input_files(f"{field} input[type=file]", str(file))
        page.wait_for_selector(f"{field} img")

    generate("txt2img", "a red boat", 3, steps=1, batch_count=2)  # two and their grid
    assert sent("txt2img") == "2 pictures were put into boats. 2 captions came along."
    page.click("#txt2img_gallery .thumbnails .thumbnail-item:nth-child(2)")
    page.click("#txt2img_send_to_img2img")
    page.wait_for_selector("#img2img_image img")
    generate("img2img", "a green boat", 1, steps=2)
    assert sent("img2img") == "1 picture was put into boats. 1 caption came along."
    (boats,) = sd1.data.rglob("data/boats")
    drawn = next(boats / name for name, caption in captions(boats).items() if caption == "a red boat")
    put("Extras", "#extras_image", drawn)
    page.click("#extras_generate")
    page.wait_for_selector("#extras_gallery img")
    assert sent("extras").startswith("1 picture was put into boats.")
    put("PNG Info", "#pnginfo_image", drawn)
    page.wait_for_selector("#tab_pnginfo >> text=a red boat")
    assert sent("pnginfo") == "1 picture was put into boats. 1 caption came along."
    assert sorted(captions(boats).values()) == ["a green boat", *["a red boat"] * 4]
