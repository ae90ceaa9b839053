"""Crops, focal points and masks of an opened data set, asked over a real socket."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("uvicorn", reason="the package uvicorn is not installed: a real server is asked here")

from PIL import Image

from lora_trainer.config.options import DataConfig
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.focus import FOCUS
from lora_trainer.data.scan import scan
from tests.builders.pictures import picture_folder
from tests.builders.workshops import Browser, open_server
from tests.unit.test_data_crops import encode_images, subject


@pytest.fixture
def address(tmp_path):
    with open_server(tmp_path / "runs") as address:
        yield address


def test_a_point_set_in_the_page_is_the_one_that_is_trained_on(tmp_path, address):
    folder = picture_folder(tmp_path / "cats", [(1024, 512), (512, 512)])
    Image.new("L", (8, 8), 255).save(folder / "1-masklabel.png")
    browser = Browser(address, folder, resolution=256)
    form = browser.ready()
    assert (form["images"], form["masks"], form["focused"], form["revision"]) == (2, 1, 0, 1)
    wide, square = browser.images()
    assert (wide["mask"], square["mask"], wide["focus"]) == (False, True, None)
    assert wide["crop"] == {"bucket": [320, 192], "left": pytest.approx(1 / 12), "top": 0,
                            "right": pytest.approx(11 / 12), "bottom": 1}  # fmt: skip
    told = browser.post(f"{browser.at}/focus", {"name": "0.png", "x": 0, "y": 0.5})
    assert (told["focus"], told["revision"]) == ([0, 0.5], 2)
    assert (told["crop"]["left"], told["crop"]["right"]) == (0, pytest.approx(10 / 12))
    assert {key: value for key, value in told.items() if key != "revision"} == browser.image("0.png")
    assert browser.get(browser.at)["focused"] == 1
    data = DataSet(scan(folder), DataConfig(batch_size=1), resolution=256, seed=1)
    list(data.prepare(encode_images))
    corners = {tuple(data(index).sizes[0, 1:4].tolist()) for index in range(2)}
    assert corners == {(1024, 0, 0), (512, 0, 0)}, "width, top and left: nothing is cut from the left"
    (folder / FOCUS).write_text("filename,x,y\n0.png,1,0\n")  # by hand
    assert browser.post(f"{browser.at}/refresh", {})["revision"] == 3
    assert browser.image("0.png")["crop"]["right"] == 1
    told = browser.post(f"{browser.at}/focus", {"name": "0.png", "x": None, "y": None})
    assert (told["focus"], told["crop"], told["revision"]) == (None, wide["crop"], 4)


def test_what_is_no_point_is_refused_and_a_broken_table_is_told(tmp_path, address):
    folder = picture_folder(tmp_path / "cats", [(128, 64)])
    browser = Browser(address, folder)
    browser.ready()
    for given, status in (
        ({"name": "0.png", "x": 1.5, "y": 0}, 422), ({"name": "0.png", "x": 0.5}, 422),
        ({"name": "0.png", "x": True, "y": 0}, 422), ({"name": "nothing.png", "x": 0, "y": 0}, 404),
    ):  # fmt: skip
        assert browser.ask("POST", f"{browser.at}/focus", given).status == status
    assert not (folder / FOCUS).exists()
    (folder / FOCUS).write_text("filename,x,y\n0.png,7,0\n")
    browser.post(f"{browser.at}/refresh", {})
    assert any("is no focal point" in warning for warning in browser.get(browser.at)["warnings"])
    assert browser.image("0.png")["focus"] is None, "the list is shown all the same"
    told = browser.ask("POST", f"{browser.at}/focus", {"name": "0.png", "x": 0, "y": 0})
    assert "is no focal point" in told.body["faults"][0]
    assert (folder / FOCUS).read_text() == "filename,x,y\n0.png,7,0\n"


def test_points_are_found_in_the_background_and_a_whole_picture_is_shown_whole(tmp_path, address):
    folder = tmp_path / "scenes"
    folder.mkdir()
    subject(0.85, (700, 500)).save(folder / "0.png")
    browser = Browser(address, folder, crop="focal", resolution=64)
    browser.ready()
    assert browser.images()[0]["focus"] is None, "nobody waits for it"
    until = time.monotonic() + 10
    while browser.get(browser.at)["revision"] == 1 and time.monotonic() < until:
        time.sleep(0.05)
    image = browser.image("0.png")
    assert image["focus"][0] > 0.6
    assert image["crop"]["right"] > 0.9
    whole = Browser(address, folder, crop="none")
    assert whole.ready()["id"] == browser.id
    crop = whole.images()[0]["crop"]
    assert [crop[edge] for edge in ("left", "top", "right", "bottom")] == [0, 0, 1, 1]
    assert browser.ask("POST", "/datasets", {"folder": str(folder), "crop": "middle"}).status == 422
