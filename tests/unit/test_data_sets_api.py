"""Data sets over HTTP, asked over a real socket."""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from urllib.parse import quote

import pytest

pytest.importorskip("uvicorn", reason="the package uvicorn is not installed: a real server is asked here")

from PIL import Image

from lora_trainer.data.captions import read_csv
from tests.builders.pictures import picture_folder, ramp
from tests.builders.served import Client
from tests.builders.workshops import Browser, open_server


@pytest.fixture
def address(tmp_path):
    with open_server(tmp_path / "runs") as address:
        yield address


@pytest.fixture
def folder(tmp_path):
    return picture_folder(tmp_path / "cats", [(64, 48), (48, 64), (80, 80)])


def test_a_data_set_from_its_opening_to_its_closing(folder, address):
    browser = Browser(address, folder, trigger="tag1")
    form = browser.ready()
    assert form["folder"] == str(folder)
    assert (form["images"], form["captioned"], form["format"], form["formats"]) == (3, 3, ".txt", [".txt"])
    assert (form["revision"], form["can_undo"], form["token_limit"], form["writable"]) == (1, False, 75, True)
    first, second, _ = browser.images()
    assert (first["name"], first["width"], first["height"], first["caption"]) == ("0.png", 64, 48, "tag0, red, ramp")
    assert (first["source"], first["tokens"]) == (".txt", 6)  # tag, 0, a comma, red, a comma, ramp
    assert (first["starts_with_trigger"], second["starts_with_trigger"]) == (False, True)
    assert (first["flags"], second["flags"]) == (["no_trigger"], [])
    told = browser.save("0.png", "a new caption")
    assert (told["caption"], told["tokens"], told["revision"]) == ("a new caption", 3, 2)
    assert told["version"] == browser.image("0.png")["version"] != first["version"]
    assert (folder / "0.txt").read_text() == "a new caption\n"
    assert (folder / "0.txt.bak").read_text() == "tag0, red, ramp\n"
    assert browser.get(browser.at)["can_undo"]
    undone = browser.post(f"{browser.at}/undo")
    assert undone == {"what": "Undone: Caption of 0.png changed.", "count": 1, "revision": 3}
    assert browser.image("0.png")["caption"] == "tag0, red, ramp"
    assert browser.post(f"{browser.at}/redo")["what"] == "Done again: Caption of 0.png changed."
    assert browser.post(f"{browser.at}/close") == {"id": browser.id}
    gone = browser.ask("GET", browser.at)
    assert (gone.status, gone.body["faults"]) == (
        404,
        [f"No data set {browser.id} is open; POST its folder to /datasets."],
    )


def test_pages_filters_and_sorts(folder, address):
    browser = Browser(address, folder)
    browser.ready()
    browser.save("2.png", "zebra")
    page = browser.get(f"{browser.at}/images?offset=1&limit=1")
    assert (page["total"], [image["name"] for image in page["images"]]) == (3, ["1.png"])

    def names(query: str) -> list[str]:
        return [image["name"] for image in browser.images(query)]

    assert names("tag=red") == ["0.png", "1.png"]
    assert names("tag=red&tag=tag1") == ["1.png"]
    assert names("tag=red&not_tag=tag1") == ["0.png"]
    assert names("not_tag=tag0&not_tag=zebra") == ["1.png"]
    assert browser.get(f"{browser.at}/names?not_tag=tag1&descending=1&limit=1")["names"] == ["2.png", "0.png"]
    edit = {"action": "append", "text": "x", "filter": {"tag": "red", "not_tag": ["tag1"]}, "preview": True}
    assert browser.post(f"{browser.at}/edit", edit)["count"] == 1
    assert names("text=ZEBRA") == ["2.png"]
    assert names("sort=caption&descending=1") == ["2.png", "1.png", "0.png"]
    assert names("sort=length") == ["2.png", "0.png", "1.png"]
    assert names("sort=tokens") == ["2.png", "0.png", "1.png"]
    assert names("sort=changed&descending=1")[0] == "2.png"
    tags = browser.get(f"{browser.at}/tags")
    assert tags["tags"][:2] == [{"tag": "ramp", "count": 2}, {"tag": "red", "count": 2}]
    assert not tags["sentences"]
    assert browser.get(f"{browser.at}/tags?text=ZEB")["tags"] == [{"tag": "zebra", "count": 1}]
    for query in ("sort=size", "flag=ugly", "limit=501", "offset=-1", "descending=maybe"):
        assert browser.ask("GET", f"{browser.at}/images?{query}").status == 422, query


def test_a_caption_that_someone_else_changed_is_not_replaced_unseen(folder, address):
    one, other = Browser(address, folder), Browser(address, folder)
    assert one.id == other.id, "two browsers share the data set"
    one.ready()
    seen = one.image("0.png")
    other.save("0.png", "of the other browser")
    order = {"name": "0.png", "caption": "mine", "version": seen["version"]}
    refused = one.ask("POST", f"{one.at}/captions", order)
    assert refused.status == 409
    assert refused.body["caption"] == "of the other browser"
    (folder / "0.txt").write_text("of another program")
    refused = one.ask("POST", f"{one.at}/captions", order | {"version": refused.body["version"]})
    assert (refused.status, refused.body["caption"]) == (409, "of another program")
    assert (folder / "0.txt").read_text() == "of another program"
    done = one.post(f"{one.at}/captions", order | {"version": refused.body["version"]})
    assert done["caption"] == "mine"
    assert (folder / "0.txt.bak").read_text() == "of another program", "what others wrote is kept"
    one.post(f"{one.at}/close")
    assert other.get(other.at)["state"] == "ready", "one browser closes, the other goes on"


def test_small_and_large_pictures(tmp_path, address):
    folder = tmp_path / "odd"
    odd = ["a b.png", "ü 100%+#?.PNG", "sub folder/😀 x.png"]
    for name in odd:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ramp(1600, 400).save(folder / name)
    clear = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    clear.save(folder / "clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    ramp(600, 300).save(folder / "turned.jpg", exif=turned)
    whole = (folder / "a b.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "no image.png").write_bytes(b"nothing")
    browser = Browser(address, folder)
    browser.ready()
    found = {image["name"]: image for image in browser.images()}
    assert set(odd) < found.keys()
    asked = Client(address, "")
    for name in odd:
        small = asked.ask("GET", found[name]["thumb"])
        assert (small.status, small.headers["content-type"]) == (200, "image/jpeg")
        assert Image.open(io.BytesIO(small.raw)).size == (256, 64)
        large = asked.ask("GET", found[name]["picture"])
        assert Image.open(io.BytesIO(large.raw)).size == (1280, 320)
        assert "immutable" in small.headers["cache-control"]
        again = asked.ask("GET", found[name]["thumb"], headers={"If-None-Match": small.headers["etag"]})
        assert (again.status, again.raw) == (304, b"")
    grey = Image.open(io.BytesIO(asked.ask("GET", found["clear.png"]["thumb"]).raw))
    assert grey.getpixel((9, 9)) == (128, 128, 128)
    assert Image.open(io.BytesIO(asked.ask("GET", found["turned.jpg"]["thumb"]).raw)).size == (128, 256)
    for name in ("cut.png", "no image.png"):
        refused = browser.ask("GET", f"{browser.at}/thumbs/{quote(name)}")
        assert (refused.status, name in refused.body["faults"][0]) == (422, True)
    before = found["a b.png"]["thumb"]
    ramp(64, 64).save(folder / "a b.png")
    browser.post(f"{browser.at}/refresh")
    after = browser.image("a b.png")["thumb"]
    assert after != before
    assert Image.open(io.BytesIO(asked.ask("GET", after).raw)).size == (64, 64)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "..%2Fsecret.png",
        "%2e%2e/secret.png",
        "sub/../../secret.png",
        "/etc/passwd",
        "0.txt",
        "%00",
        "%FF",
    ],
)
def test_no_address_leads_out_of_the_folder(folder, address, name):
    ramp(8, 8).save(folder.parent / "secret.png")
    browser = Browser(address, folder)
    browser.ready()
    for kind in ("thumbs", "pictures"):
        assert browser.ask("GET", f"{browser.at}/{kind}/{name}").status in (400, 404), kind
    for order in ({"name": "../secret.png"}, {"name": "secret.png"}):
        reply = browser.ask("POST", f"{browser.at}/captions", order | {"caption": "x", "version": "x"})
        assert reply.status == 404
    assert not list(folder.parent.glob("secret.txt"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps names that are no text")
def test_a_name_that_is_no_text(tmp_path, address):
    folder = picture_folder(tmp_path / "bytes", [(32, 32)])
    os.rename(os.fsencode(folder / "0.png"), os.fsencode(folder) + b"/caf\xe9.png")  # noqa: PTH104
    browser = Browser(address, folder)
    browser.ready()
    (image,) = browser.images()
    assert Client(address, "").ask("GET", image["thumb"]).status == 200
    refused = browser.ask(
        "POST", f"{browser.at}/captions", {"name": image["name"], "caption": "half \ud800", "version": image["version"]}
    )
    assert (refused.status, "rename the file" in refused.body["faults"][0]) == (422, True)


def test_html_and_formulas_stay_what_they_are(folder, address):
    (folder / "metadata.csv").write_text("filename,prompt\n0.png,x\n")
    browser = Browser(address, folder)
    browser.ready()
    for caption in ("<script>alert(1)</script>", "=1+1", '"quoted", and a comma', "@SUM(A1)"):
        assert browser.save("0.png", caption)["caption"] == caption
        assert browser.image("0.png")["caption"] == caption
        assert read_csv(folder / "metadata.csv").captions["0.png"] == caption
        assert (folder / "0.txt").read_text() == f"{caption}\n"


def test_folders_outside_of_those_allowed_are_refused(tmp_path, folder):
    with open_server(tmp_path / "runs", allowed=[tmp_path / "webui"]) as address:
        reply = Client(address).ask("POST", "/datasets", {"folder": str(folder)})
        assert (reply.status, reply.body["faults"][0].startswith("folder is ")) == (422, True)
        reply = Client(address).ask("POST", "/datasets", {"folder": str(tmp_path / "webui"), "metadata": "/etc/passwd"})
        assert (reply.status, reply.body["faults"][0].startswith("metadata is ")) == (422, True)
    assert not (folder / ".cache").exists(), "a folder that is refused is not written to"


def test_what_is_no_data_set_is_told(tmp_path, address):
    empty = tmp_path / "empty"
    empty.mkdir()
    browser = Browser(address, empty)
    form = browser.ready()
    assert (form["state"], "has no images" in form["message"]) == ("failed", True)
    reply = browser.ask("GET", f"{browser.at}/images")
    assert (reply.status, "has no images" in reply.body["faults"][0]) == (422, True)
    picture_folder(empty, [(32, 32)])
    assert browser.post(f"{browser.at}/refresh")["state"] == "ready", "once there are some"
    empty.rename(tmp_path / "away")
    form = browser.until(browser.id, lambda form: form["state"] == "failed", at="/datasets")
    assert "does not exist" in form["message"]
    for body in ({}, {"folder": ""}, {"folder": 5}, {"folder": str(empty), "dir": 1}, {"folder": str(empty / "no")}):
        assert Client(address).ask("POST", "/datasets", body).status == 422, body


def test_what_others_do_to_the_folder_is_noticed(folder, address):
    browser = Browser(address, folder)
    revision = browser.ready()["revision"]
    (folder / "1.txt").write_text("by another tool")
    (folder / "0.png").rename(folder / "9.png")
    (folder / "2.png").unlink()
    end = time.monotonic() + 15
    while browser.get(browser.at)["revision"] == revision:
        assert time.monotonic() < end
        time.sleep(0.1)
    found = {image["name"]: image["caption"] for image in browser.images()}
    assert found == {"1.png": "by another tool", "9.png": ""}
    gone = browser.ask("POST", f"{browser.at}/captions", {"name": "2.png", "caption": "x", "version": "x"})
    assert (gone.status, "not any more" in gone.body["faults"][0]) == (404, True)
    assert not (folder / "2.txt.bak").exists()


def test_the_check_goes_on_in_the_background_and_its_remedies_are_one_click(tmp_path, address):
    folder = picture_folder(tmp_path / "sick", [(512, 512), (64, 64), (512, 512), (512, 512)])
    shutil.copyfile(folder / "2.png", folder / "3.png")
    for number in (0, 1, 2):
        (folder / f"{number}.txt").write_text(f"mycat, tag{number}", "utf-8")
    (folder / "3.txt").write_text("tag 3, red", "utf-8")
    (folder / "no.png").write_bytes(b"no image")
    browser = Browser(address, folder, trigger="mycat")
    browser.ready()
    found = browser.until(browser.id, lambda form: form["looked_at"] == 4, at="/datasets", then="/check")
    kinds = {finding["kind"]: finding for finding in found["findings"]}
    assert {"unreadable", "tiny", "duplicate", "trigger_missing"} <= kinds.keys()
    assert {"1.png", "2.png", "3.png", "no.png"} <= found["thumbs"].keys()
    assert Client(address, "").ask("GET", found["thumbs"]["3.png"]).status == 200
    assert Client(address, "").ask("GET", found["thumbs"]["no.png"]).status == 422
    assert "tiny" in browser.image("1.png")["flags"]
    assert [image["name"] for image in browser.images("flag=tiny")] == ["1.png"]
    assert [image["name"] for image in browser.images("flag=trigger_missing")] == ["3.png"]
    pictures = {path.name for path in folder.glob("*.png")}
    done = browser.post(f"{browser.at}/fix", {"kinds": ["trigger_missing", "tiny", "transparent"]})["done"]
    assert done[0] == "trigger_missing: 'mycat' put before 1 caption."
    assert done[1].startswith("tiny: 1 image left out by")
    assert done[2] == "transparent: nothing to do, none was found."
    assert (folder / "3.txt").read_text("utf-8") == "mycat, tag 3, red\n"
    assert {image["name"] for image in browser.images()} == {"0.png", "2.png", "3.png"}
    assert {path.name for path in folder.glob("*.png")} == pictures, "no picture is ever taken away"
    kinds = {finding["kind"] for finding in browser.get(f"{browser.at}/check")["findings"]}
    assert not kinds & {"trigger_missing", "tiny"}
    assert browser.post(f"{browser.at}/undo")["what"] == "Undone: 'mycat' put before 1 caption."
    assert (folder / "3.txt").read_text("utf-8") == "tag 3, red\n"
    assert browser.ask("POST", f"{browser.at}/fix", {"kinds": ["no_caption"]}).status == 422


def test_a_folder_closed_to_writing_is_shown_and_refused_in_words(tmp_path, folder, address):
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("the superuser writes everywhere")
        browser = Browser(address, folder)
        assert not browser.ready()["writable"]
        image = browser.image("0.png")
        assert Client(address, "").ask("GET", image["thumb"]).status == 200
        order = {"name": "0.png", "caption": "x", "version": image["version"]}
        refused = browser.ask("POST", f"{browser.at}/captions", order)
        assert (refused.status, "cannot be written" in refused.body["faults"][0]) == (422, True)
        assert browser.image("0.png")["caption"] == image["caption"]
        assert not browser.get(browser.at)["can_undo"]
        assert list((tmp_path / "runs/data_sets").rglob("*.jpg")), "small pictures are kept elsewhere"
        assert not (folder / ".cache").exists()
    finally:
        folder.chmod(0o755)


def test_a_training_reads_a_data_set_that_is_open(folder, address):
    browser = Browser(address, folder)
    browser.ready()
    plan = {"train_data_dir": str(folder), "base_model": "demo", "resolution": 64, "train.steps": 1}
    assert browser.post("/plan", plan)["captioned"] == 3
    browser.save("0.png", "")
    assert browser.post("/plan", plan)["captioned"] == 2


def test_an_edit_over_http(folder, address):
    browser = Browser(address, folder)
    browser.ready()
    order = {"action": "replace", "find": "red", "replacement": "blue", "filter": {}}
    told = browser.post(f"{browser.at}/edit", order | {"preview": True})
    assert (told["count"], len(told["examples"]), told["revision"]) == (3, 3, 1)
    assert told["examples"][0] == {"name": "0.png", "before": "tag0, red, ramp", "after": "tag0, blue, ramp"}
    done = browser.post(f"{browser.at}/edit", order | {"filter": {"tag": ["red", "tag1"]}})
    assert (done["count"], done["revision"]) == (1, 2)
    assert (folder / "1.txt").read_text("utf-8") == "tag1, blue, ramp\n"
    for wrong in (
        {"action": "shout"}, {"action": "remove", "find": "x"}, order | {"regex": 1}, order | {"colour": 1},
        order | {"filter": None}, order | {"filter": {"flag": "ugly"}}, order | {"filter": []},
        order | {"names": ["no.png"]},
        order | {"find": "(", "regex": True},
    ):  # fmt: skip
        assert browser.ask("POST", f"{browser.at}/edit", wrong).status == 422, wrong
