"""Dropping files onto the page and "Send to LoRA Trainer", in a real browser with a real server behind the page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the package gradio is not installed: the page is made with it")
pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed: no browser")

from PIL import Image, PngImagePlugin

from lora_trainer.data.scan import scan
from tests.builders.browsed import MARKS, field, goto, serving

pytestmark = MARKS

# What the script looks for, as A1111 v1.10.1 draws it (gradio 3.41), and as its forks under gradio 4 do.
GALLERY = """
(pictures) => {
    document.body.insertAdjacentHTML("beforeend", `
        <div id="image_buttons_txt2img"><button id="txt2img_send_to_img2img" class="tool">a</button>
            <button id="txt2img_send_to_extras" class="tool">b</button></div>
        <div id="txt2img_gallery"><div class="thumbnails"></div></div>
        <div id="generation_info_txt2img"><textarea></textarea></div>
        <div id="tab_pnginfo"><button id="extras_tab">c</button></div><div id="pnginfo_image"></div>`);
    const place = document.querySelector("#txt2img_gallery .thumbnails");
    for (const [n, src] of pictures.entries()) {
        const item = document.createElement("button");
        item.className = "thumbnail-item" + (n ? "" : " selected");
        const image = item.appendChild(document.createElement("img"));
        image.src = src;
        place.append(item);
    }
}
"""
DROP = """
(files) => {
    const carried = new DataTransfer();
    for (const [name, data] of files) {
        carried.items.add(new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], name));
    }
    const more = { bubbles: true, cancelable: true, dataTransfer: carried };
    document.querySelector("#lt_form").dispatchEvent(new DragEvent("drop", more));
}
"""


def picture(colour: str, prompt: str = "") -> bytes:
    notes, data = PngImagePlugin.PngInfo(), io.BytesIO()
    if prompt:
        notes.add_text("parameters", f"{prompt}\nNegative prompt: bad\nSteps: 2, Sampler: Euler, Seed: 1, Size: 8x8")
    Image.new("RGB", (8, 8), colour).save(data, "PNG", pnginfo=notes)
    return data.getvalue()


def source(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(folder) as (_, found):
        yield found


@pytest.fixture
def page(address: str, tab: Any) -> Iterator[Any]:
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    goto(tab, address)
    tab.wait_for_selector("#lt_plan .lt-hint")
    yield tab
    assert faults == []


def offered(page: Any) -> str:
    page.wait_for_selector("#lt_notices .lt-offer:not(.lt-sending)")
    text = page.inner_text("#lt_notices .lt-offer p")
    page.click("#lt_notices .lt-away")
    return text


def sets(folder: Path) -> dict[str, dict[str, str]]:
    """Captions by picture, by data set."""
    place = next(folder.rglob("data"))
    return {
        path.name: {item.name: item.caption for item in scan(path).items}
        for path in place.iterdir() if not path.name.startswith(".")
    }  # fmt: skip


def test_pictures_are_sent_from_a_gallery_with_their_prompts(page: Any, folder: Path) -> None:
    drawn = [picture("red", "a red <lora:x:1>"), picture("blue", "a blue"), picture("green")]
    told = {"index_of_first_image": 1, "infotexts": ["grid", "x", "y", "a green\nNegative prompt: z"]}
    page.evaluate(GALLERY, [source(picture("white", "the grid")), *map(source, drawn)])
    page.fill("#generation_info_txt2img textarea", json.dumps(told))
    page.click("#txt2img_send_to_lora_trainer")
    page.fill("dialog.lt-sendto input", "colours")
    page.keyboard.press("Enter")
    assert offered(page) == "3 pictures were put into colours. 3 captions came along."
    assert sorted(sets(folder)["colours"].values()) == ["a blue", "a green", "a red"]
    kept = {path.read_bytes() for path in folder.rglob("data/colours/*.png")}
    assert kept == set(drawn), "as they were, with all that is written in them"

    page.evaluate("document.querySelector('.thumbnail-item.selected').classList.remove('selected')")
    page.evaluate("document.querySelectorAll('.thumbnail-item')[2].classList.add('selected')")
    page.click("#txt2img_send_to_lora_trainer")
    assert offered(page) == "1 file was there already.", "the one that is selected, sent to where the others went"

    page.evaluate("document.querySelector('#image_buttons_txt2img').innerHTML = '<button id=a_send_to_b>c</button>'")
    page.wait_for_selector("#txt2img_send_to_lora_trainer")
    page.click("#pnginfo_send_to_lora_trainer")
    page.wait_for_selector("text=There is no picture to send yet.")


def test_files_that_are_dropped_become_a_data_set_and_the_next_ones_join_it(page: Any, folder: Path) -> None:
    def drop(**files: bytes) -> str:
        named = [(name.replace("__", "."), base64.b64encode(data).decode()) for name, data in files.items()]
        page.evaluate(DROP, named)
        return offered(page)

    told = drop(a__png=picture("red"), a__txt=b"one", movie__mov=b"no")
    assert told.startswith("1 picture was put into dropped_")
    assert "movie.mov" in told
    page.wait_for_function(f"document.querySelector('{field('data_folder')}').value.includes('dropped_')")
    told = drop(a__png=picture("blue"), a__txt=b"two", b__png=b"no picture")
    assert "a_2.png" in told
    assert "not an image" in told
    (dropped,) = (name for name in sets(folder) if name.startswith("dropped_"))
    assert sets(folder)[dropped] == {"a.png": "one", "a_2.png": "two"}
    page.wait_for_selector("#lt_plan .lt-told")
    assert page.inner_text("#lt_plan .lt-told").startswith("2 images, all with captions")
