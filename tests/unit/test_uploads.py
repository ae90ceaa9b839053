"""Pictures that are sent: gathered, unpacked, joined; over real HTTP; and what is refused."""

from __future__ import annotations

import io
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from lora_trainer.contracts import HostPaths, PlainError
from lora_trainer.data import zipped
from lora_trainer.data.scan import scan
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs import uploads
from lora_trainer.jobs.registry import Registry
from lora_trainer.jobs.uploads import Upload, known_sets, place_of
from tests.builders.served import Client, application, served

BYTES = {"Content-Type": "application/octet-stream"}


def picture(colour: str, prompt: str = "") -> bytes:
    """The bytes of a PNG, with the prompt as a WebUI writes it."""
    notes, data = PngImagePlugin.PngInfo(), io.BytesIO()
    if prompt:
        notes.add_text("parameters", f"{prompt}\nNegative prompt: bad\nSteps: 2, Sampler: Euler, Seed: 1, Size: 8x8")
    Image.new("RGB", (8, 8), colour).save(data, "PNG", pnginfo=notes)
    return data.getvalue()


@pytest.fixture
def paths(tmp_path: Path) -> HostPaths:
    return HostPaths(loras=None, runs=tmp_path / "runs")


def sent(paths: HostPaths, files: dict[str, bytes], folder: Path | None = None, name: str = "") -> Upload:
    upload = Upload.begin(paths, folder=folder, name=name)
    for file, data in files.items():
        upload.place_for(file, len(data)).write_bytes(data)
    return upload


def captions(folder: Path) -> dict[str, str]:
    return {item.name: item.caption for item in scan(folder).items}


# --- one sending -----------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_data_set_of_its_own(paths: HostPaths) -> None:
    files = {"my cat/a.png": picture("red"), "my cat/b/c.png": picture("blue"), "my cat/b/c.txt": b"two"}
    taken = sent(paths, files, name="my cat").finish()
    assert taken.folder == place_of(paths) / "my cat"
    assert captions(taken.folder) == {"a.png": "", "b/c.png": "two"}
    again = sent(paths, files, name="my cat").finish()
    assert again.folder.name == "my cat_2"
    assert sorted(path.name for path in place_of(paths).iterdir()) == [".arriving", "my cat", "my cat_2"]
    assert list((place_of(paths) / ".arriving").iterdir()) == []


def test_a_folder_keeps_its_name_where_that_means_something(paths: HostPaths, tmp_path: Path) -> None:
    repeated = sent(paths, {"10_cat/a.png": picture("red")}).finish()
    assert [item.repeats for item in scan(repeated.folder).items] == [10]
    sent(paths, {"mask/a.png": picture("white")}, folder=repeated.folder / "10_cat").finish()
    assert [item.mask for item in scan(repeated.folder).items] == [repeated.folder / "10_cat/mask/a.png"]
    (tmp_path / "mine").mkdir()
    joined = sent(paths, {"cats/a.png": picture("red")}, folder=tmp_path / "mine").finish()
    assert joined.pictures == ["cats/a.png"]


def test_the_prompt_becomes_the_caption(paths: HostPaths, tmp_path: Path) -> None:
    files = {"a.png": picture("red", "a cat, <lora:x:1>"), "b.png": picture("blue"), "c.png": picture("green")}
    texts = {"a.png": "another", "b.png": "a dog\nNegative prompt: x"}
    taken = sent(paths, files).finish(prompts=True, infotexts=texts)
    assert captions(taken.folder) == {"a.png": "a cat", "b.png": "a dog", "c.png": ""}
    assert (taken.folder / "a.png").read_bytes() == files["a.png"], "with all that is written in it"
    assert captions(sent(paths, files).finish().folder) == {"a.png": "", "b.png": "", "c.png": ""}


@pytest.mark.parametrize(
    "name",
    ["", "/etc/a.png", "../a.png", "a/../../b.png", "C:/a.png", "C:\\a.png", "a//b.png", "a\x00.png", "a\n.png",
     ".hidden/a.png", "a.exe", "a", "x" * 252 + ".png", "é" * 130 + ".png"],
)  # fmt: skip
def test_a_name_that_cannot_be_is_refused(paths: HostPaths, name: str) -> None:
    with pytest.raises(PlainError):
        Upload.begin(paths).place_for(name, 1)


@pytest.mark.parametrize(
    "name", ["a b.PNG", "猫🐈/é.jpg", "con.png", "a'\"<b>.png", "=cmd|x.png", "./a.png", "b\\c.png"]
)
def test_a_name_that_can_be_is_taken_as_it_is(paths: HostPaths, name: str) -> None:
    taken = sent(paths, {name: picture("red"), "other.png": picture("blue")}).finish()
    assert name.replace("\\", "/").removeprefix("./") in taken.pictures


def test_what_is_too_large_is_told_before_it_comes(paths: HostPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = Upload.begin(paths)
    with pytest.raises(PlainError, match=r"2\.0 GB, more than the 1\.1 GB"):
        upload.place_for("a.png", 2 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(uploads.RESERVE + 10))
    assert upload.place_for("a.png", 10)
    with pytest.raises(PlainError, match="disk has room"):
        upload.place_for("a.png", 11)


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_where_it_goes_is_looked_at_first(paths: HostPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlainError, match="no folder"):
        Upload.begin(paths, folder=tmp_path / "none")
    with pytest.raises(PlainError, match="file, without a folder"):
        Upload.begin(paths, name="../mine")
    real = os.access  # folders are never closed to root, as whom tests may run
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and real(path, mode))
    with pytest.raises(PlainError, match="closed to writing"):
        Upload.begin(paths, folder=tmp_path)


def test_what_nobody_finished_is_swept_and_what_goes_on_is_not(paths: HostPaths) -> None:
    old, going = Upload.begin(paths), Upload.begin(paths)
    for upload, hours in ((old, 25), (going, 23)):
        here = place_of(paths) / ".arriving" / upload.id
        for path in (here, here / "files"):
            os.utime(path, (time.time() - hours * 3600,) * 2)
    Upload.begin(paths)
    Upload(going.id, paths)
    with pytest.raises(KeyError):
        Upload(old.id, paths)
    with pytest.raises(KeyError):
        Upload("../" + going.id, paths)


def test_nothing_worth_keeping_leaves_no_empty_set(paths: HostPaths) -> None:
    taken = sent(paths, {"a.png": b"no picture"}).finish()
    assert [one.name for one in taken.left] == ["a.png"]
    assert not taken.folder.exists()


def test_known_sets_are_those_that_are_there_and_allowed(tmp_path: Path) -> None:
    paths = HostPaths(loras=None, runs=tmp_path / "runs", allowed=(tmp_path / "runs", tmp_path / "mine"))
    first = sent(paths, {"a.png": picture("red")}, name="first").finish().folder
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    os.utime(first, (1, 1))
    others = [str(tmp_path / name) for name in ("mine", "other", "gone")] + [str(first)]
    assert known_sets(paths, others) == [tmp_path / "mine", first]


# --- archives --------------------------------------------------------------------------------------------------------


def archive(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return data.getvalue()


def test_an_archive_is_unpacked_and_what_is_odd_in_it_is_named(paths: HostPaths) -> None:
    inside = {
        "cats/a.png": picture("red"), "cats/a.txt": b"one", "cats/": b"", "cats/.DS_Store": b"x",
        "cats/Thumbs.db": b"x", "__MACOSX/cats/._a.png": b"x", "../evil.png": picture("blue"),
        "/etc/evil.png": picture("blue"),
        "cats/run.exe": b"x", "cats/more.zip": archive({"a.png": b""}), "cats/猫.png": picture("green"),
    }  # fmt: skip
    taken = sent(paths, {"cats.zip": archive(inside)}, name="cats").finish()
    assert captions(taken.folder) == {"a.png": "one", "猫.png": ""}
    assert {one.name for one in taken.left} == {"../evil.png", "/etc/evil.png", "cats/run.exe", "cats/more.zip"}
    assert not list(taken.folder.rglob("*.zip"))


def test_names_that_an_old_program_packed_are_read_as_they_were_meant(paths: HostPaths) -> None:
    data = archive({"abcdef.png": picture("red")}).replace(b"abcdef", "ねこ_".encode("cp932") + b"_")
    taken = sent(paths, {"a.zip": data}).finish()
    assert taken.pictures == ["ねこ__.png"]


def test_an_archive_cannot_fill_the_disk(paths: HostPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = archive({"a.png": b"\0" * 3_000_000})
    upload = sent(paths, {"bomb.zip": bomb, "b.png": picture("red")})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(uploads.RESERVE + 1_000_000))
    taken = upload.finish()
    assert taken.pictures == ["b.png"]
    assert "bomb.zip holds 0.0 GB unpacked" in taken.left[0].reason
    # one that lies about its size, in its list and before the data
    lying = bomb.replace((3_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    monkeypatch.undo()
    taken = sent(paths, {"lying.zip": lying, "b.png": picture("red")}).finish()
    assert taken.pictures == ["b.png"]
    assert "a.png" in taken.left[0].name
    monkeypatch.setattr(zipped, "MOST_FILES", 2)
    taken = sent(paths, {"many.zip": archive({f"{n}.png": b"" for n in range(3)})}).finish()
    assert "3 files" in taken.left[0].reason


@pytest.mark.parametrize(
    "data", [b"", b"no zip", archive({"a.png": b"x" * 99})[:60]], ids=("empty", "foreign", "cut off")
)  # named, since an archive holds the second it was made in
def test_a_damaged_archive_is_told(paths: HostPaths, data: bytes) -> None:
    taken = sent(paths, {"a.zip": data}).finish()
    assert "no zip archive that can be read" in taken.left[0].reason


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    pytest.importorskip("uvicorn", reason="the package uvicorn is not installed: a real server is asked here")
    host = Standalone(runs=tmp_path / "runs", allowed=[tmp_path / "runs", tmp_path / "mine"])
    with served(application(Registry(host), host)) as address:
        yield Client(address)


def send(client: Client, id: str, name: str, data: bytes, headers: dict[str, str] = BYTES) -> Any:
    from urllib.parse import quote

    return client.ask("POST", f"/uploads/{id}/files?name={quote(name)}", data, headers)


def test_files_are_sent_and_finished_over_http(client: Client, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(picture("red"))
    id = client.post("/uploads", {"folder": str(tmp_path / "mine")})["id"]
    data = picture("blue", "a cat")
    assert send(client, id, "a.png", data).body == {"name": "a.png", "bytes": len(data)}
    assert send(client, id, "a.png", data).status == 200, "a file that comes again takes its own place"
    assert send(client, id, "b.png", b"").status == 200
    found = client.post(f"/uploads/{id}/finish", {"prompts": True})
    assert found == {
        "folder": str(tmp_path / "mine"), "name": "mine", "pictures": 1, "captions": 1, "already": 0,
        "added": ["a_2.png"], "renamed": {"a.png": "a_2.png"}, "left": found["left"], "left_count": 1,
    }  # fmt: skip
    assert "not an image" in found["left"][0]["reason"]
    assert (tmp_path / "mine" / "a_2.png").read_bytes() == data
    assert client.ask("POST", f"/uploads/{id}/finish", {}).status == 404
    client.post("/uploads", {"name": "new"})
    sets = client.get("/uploads")
    assert sets["place"] == str(tmp_path / "runs" / "data")
    assert sets["sets"] == [], "nothing has been put into it yet, and mine is known to no job"


def test_an_open_data_set_is_sent_to_by_its_id(client: Client, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(picture("red"))
    opened = client.post("/datasets", {"folder": str(tmp_path / "mine")})["id"]
    id = client.post("/uploads", {"dataset": opened})["id"]
    send(client, id, "b.png", picture("blue"))
    assert client.post(f"/uploads/{id}/finish")["folder"] == str(tmp_path / "mine")


def test_what_a_sending_may_not_do(client: Client, tmp_path: Path) -> None:
    assert client.ask("POST", "/uploads", {"folder": str(tmp_path)}).status == 422
    assert client.ask("POST", "/uploads", {"nme": ""}).status == 422
    assert client.ask("POST", "/uploads", {"name": 3}).status == 422
    assert client.ask("POST", "/uploads", {"dataset": "none"}).status == 404
    id = client.post("/uploads")["id"]
    for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain", "image/png"):
        assert send(client, id, "a.png", b"x", {"Content-Type": kind}).status == 415, kind
    assert client.ask("POST", f"/uploads/{id}/finish", b"x", BYTES).status == 415
    assert send(client, id, "../a.png", b"x").status == 422
    assert send(client, "0" * 32, "a.png", b"x").status == 404
    told = send(client, id, "a.png", b"x", {**BYTES, "Content-Length": str(3 << 30)})
    assert told.status == 413
    assert "1.1 GB that are taken" in told.body["faults"][0]
    assert client.ask("POST", f"/uploads/{id}/finish", {"infotexts": {"a": 1}}).status == 422
    assert client.post(f"/uploads/{id}/cancel") == client.post(f"/uploads/{id}/cancel") == {"id": id}


def test_a_body_that_is_longer_than_told_is_cut_off(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LARGEST_FILE", 1000)
    id = client.post("/uploads")["id"]

    def pieces() -> Iterator[bytes]:
        yield from [b"x" * 600, b"x" * 600]

    import http.client

    door = http.client.HTTPConnection(client.address.removeprefix("http://"))
    door.request("POST", f"{client.prefix}/uploads/{id}/files?name=a.png", pieces(), BYTES, encode_chunked=True)
    reply = door.getresponse()
    assert reply.status == 413
    assert b"1,000" in reply.read()
    assert list((tmp_path / "runs" / "data" / ".arriving" / id / "files").iterdir()) == []
