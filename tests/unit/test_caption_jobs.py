"""Captioning as a job, over a real socket, by the embedded captioner of the demo."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the package uvicorn is not installed: a real server is asked here")

from lora_trainer.data.captions import read_csv
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.registry import Registry
from lora_trainer.jobs.tasks import Chore
from tests.builders.pictures import picture_folder
from tests.builders.served import Client
from tests.builders.workshops import Browser, caption_of, open_server, opened, saved

OVER = ("done", "failed", "stopped")


@pytest.fixture
def address(tmp_path):
    with open_server(tmp_path / "runs") as address:
        yield address


def ended(client: Client, id: str) -> dict[str, Any]:
    return client.until(id, lambda job: job["state"] in OVER)


def test_an_open_data_set_is_captioned_in_step_and_can_be_undone_in_one(tmp_path, address):
    folder = picture_folder(tmp_path / "new", [(64, 64)] * 20, captions=False)
    (folder / "3.txt").write_text("of my own")
    browser = Browser(address, folder)
    before = browser.ready()
    id = browser.post("/captions", {"dataset": browser.id, "model": "demo", "batch_size": 4})["id"]
    job = ended(browser, id)
    assert (job["state"], job["kind"], job["name"], job["step"], job["total_steps"]) == (
        "done",
        "captions",
        "new",
        19,
        19,
    )
    assert (job["lora"], job["sample"], job["resumable"], job["files"]) == (None, None, False, [])
    assert browser.get("/jobs")["jobs"][0] == job
    events = browser.get(f"/jobs/{id}/events")["events"]
    assert {event["kind"] for event in events} == {"prepared", "finished"}
    after = browser.get(browser.at)
    assert (after["captioned"], after["revision"] > before["revision"]) == (20, True)
    assert (folder / "3.txt").read_text() == "of my own", "what has a caption is skipped"
    written = {path.name for path in folder.glob("*.txt")} - {"3.txt"}
    assert len(written) == 19, "where the other captions are"
    undone = browser.post(f"{browser.at}/undo")
    assert (undone["what"], undone["count"]) == ("Undone: 19 captions written by demo.", 19)
    assert {path.name for path in folder.glob("*.txt")} == {"3.txt"}
    assert browser.get(browser.at)["captioned"] == 1


def test_a_folder_is_captioned_as_the_command_does_it(tmp_path, address):
    folder = picture_folder(tmp_path / "plain", [(64, 64)], captions=False)
    client = Client(address)
    job = ended(client, client.post("/captions", {"input": str(folder), "model": "demo", "trigger": "mycat"})["id"])
    assert (job["state"], job["trigger"]) == ("done", "mycat")
    assert read_csv(folder / "metadata.csv").captions["0.png"].startswith("mycat, ")


def test_a_stop_keeps_what_is_done_and_other_orders_are_refused(tmp_path, address):
    folder = picture_folder(tmp_path / "many", [(64, 64)] * 300, captions=False)
    browser = Browser(address, folder)
    browser.ready()
    id = browser.post("/captions", {"dataset": browser.id, "model": "demo", "batch_size": 1})["id"]
    job = browser.until(id, lambda job: job["step"] >= 3)
    assert (job["state"], job["seconds_per_step"] > 0, job["seconds_left"] > 0) == ("running", True, True)
    for order in ("pause", "save", "sample"):
        refused = browser.ask("POST", f"/jobs/{id}/{order}", {})
        assert (refused.status, "no training" in refused.body["faults"][0]) == (409, True), order
    browser.post(f"/jobs/{id}/stop")
    job = ended(browser, id)
    assert (job["state"], 3 <= job["step"] < 300) == ("stopped", True)
    assert browser.get(browser.at)["captioned"] == job["step"]
    assert browser.ask("POST", f"/jobs/{id}/resume", {}).status == 409


def test_what_cannot_be_done_is_told_at_once(tmp_path, address):
    folder = picture_folder(tmp_path / "x", [(32, 32)])
    browser = Browser(address, folder)
    browser.ready()
    wrong = {
        "no data set of that id": {"dataset": "nowhere", "model": "demo"},
        "leave input and output out": {"dataset": browser.id, "input": str(folder), "model": "demo"},
        "is not on this machine": {"dataset": browser.id, "model": "wd14"},
        "There is no captioner": {"dataset": browser.id, "model": "nobody"},
        "treshold": {"dataset": browser.id, "treshold": 0.3},
        "does not exist": {"input": str(folder / "no"), "model": "demo"},
    }
    for part, body in wrong.items():
        refused = browser.ask("POST", "/captions", body)
        assert (refused.status, part in refused.body["faults"][0]) == (422, True), (part, refused)
    assert browser.get("/jobs") == {"jobs": []}


def test_files_outside_of_the_allowed_folders_are_not_read(tmp_path):
    inside = picture_folder(tmp_path / "webui/x", [(32, 32)])
    outside = picture_folder(tmp_path / "y", [(32, 32)])
    (outside / "secret").write_text("secret")
    with open_server(tmp_path / "runs", allowed=[tmp_path / "webui"]) as address:
        client = Client(address)
        base = {"input": str(inside), "model": "demo"}
        for what, value in {
            "input": str(outside), "output": str(outside / "m.csv"), "models": str(outside), "model": str(outside),
            "tags": [str(outside / "secret")],
        }.items():  # fmt: skip
            refused = client.ask("POST", "/captions", base | {what: value})
            assert (refused.status, refused.body["faults"][0].startswith(f"{what} is ")) == (422, True), refused


def test_captioners_are_listed_with_what_they_need(address):
    found = {one["name"]: one for one in Client(address).get("/captioners")["captioners"]}
    assert {"blip-base", "wd14", "demo"} <= found.keys()
    assert (found["demo"]["here"], found["wd14"]["makes"], found["wd14"]["size"]) == (True, "tags", "0.5 GB")
    assert found["wd14"]["where"].endswith("models/captioners/wd14") or found["wd14"]["here"]


def test_a_caption_that_somebody_wrote_meanwhile_stays(tmp_path):
    folder = picture_folder(tmp_path / "x", [(32, 32)] * 3, captions=False)
    workshop = opened(folder)
    saved(workshop, "1.png", "by hand")
    made = {"0.png": "machine 0", "1.png": "machine 1", "9.png": "machine 9"}
    left = workshop.describe(made, dict.fromkeys(made, ""), what="w", work="1", new_in=".txt")
    assert left == ["1.png", "9.png"]
    assert [caption_of(workshop, f"{number}.png") for number in range(3)] == ["machine 0", "by hand", ""]


def test_a_chore_of_a_server_that_ended_is_remembered_as_cut_off(tmp_path):
    host = Standalone(runs=tmp_path / "runs")
    registry = Registry(host)
    job = registry.add(Chore("captions", "cats", 30, lambda host, control: (event for event in ())), {"model": "demo"})
    while not job.ended:
        pass
    assert (job.state, job.message) == ("failed", "The job ended without saying how.")
    record = job.record() | {"status": job.record()["status"] | {"state": "running", "step": 7}}
    registry.close(10)
    registry._records.write(job.id, lambda: record)
    registry._records.give_back()
    (later,) = Registry(host).jobs()
    assert (later.name, later.task.kind, later.state, later.resumable) == ("cats", "captions", "stopped", False)
    assert later.message == "The server ended after 7 of 30 images, which are kept; start it again."
