"""The HTTP routes, asked over a real socket, with real small runs behind them."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the package uvicorn is not installed: a real server is asked here")

from lora_trainer.config.load import dump
from lora_trainer.config.surfaces import json_schema
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.interfaces.api.routes import mount
from lora_trainer.jobs.method import advice
from lora_trainer.jobs.registry import Registry
from tests.builders.runs import run_all, small_run
from tests.builders.served import Client, application, served

QUICK = {"train__text_encoder_learning_rate": 0.0, "data__batch_size": 1}  # a step in a twentieth of a second


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    return dump(small_run(folder, **(QUICK | options)))


def long(folder: Path, **options: Any) -> dict[str, Any]:
    return settings(folder, **({"train__steps": 5000, "output__save_steps": 0} | options))


@pytest.fixture
def client(tmp_path):
    host = Standalone(runs=tmp_path / "runs")
    registry = Registry(host)
    with served(application(registry, host)) as address:
        yield Client(address)
        registry.close(60)


@pytest.fixture
def limited(tmp_path):
    """A host that keeps requests inside of its folders."""
    folder = tmp_path / "webui"
    (folder / "loras").mkdir(parents=True)
    host = Standalone(loras=folder / "loras", runs=tmp_path / "runs", checkpoints=[folder], allowed=[folder])
    registry = Registry(host)
    with served(application(registry, host)) as address:
        yield Client(address)
        registry.close(60)


def refused(client: Client, path: str, body: Any, status: int = 422) -> list[str]:
    reply = client.ask("POST", path, body)
    assert reply.status == status, reply
    assert list(reply.body) == ["faults"]
    assert all(fault[-1] in ".?!" and "\n" not in fault for fault in reply.body["faults"]), reply.body
    return reply.body["faults"]


def test_a_job_from_its_submission_to_its_file(tmp_path, client):
    prompts = {"samples__prompts": ["blocks <b>"], "samples__sampling_steps": 1, "samples__size": 64}
    id = client.post("/jobs", settings(tmp_path, **prompts))["id"]
    job = client.until(id, lambda job: job["state"] not in ("queued", "running"))
    assert (job["state"], job["step"], job["total_steps"], job["lora"]) == ("done", 6, 6, "lora")
    assert job["sample"] == {"prompt": "blocks <b>", "seed": 42, "size": 64}
    assert job["files"][-1] == str(tmp_path / "out/lora/lora.safetensors")
    assert job["seconds_left"] is None
    assert not job["resumable"]
    assert client.get("/jobs") == {"jobs": [job]}

    told = client.get(f"/jobs/{id}/events?after=0")
    kinds = [event["kind"] for event in told["events"]]
    assert set(kinds) == {"told", "judged", "prepared", "started", "stepped", "saved", "sampled", "finished"}
    assert [event["text"] for event in told["events"] if event["kind"] == "told"] == advice(small_run(tmp_path))
    (memory,) = [event for event in told["events"] if event["kind"] == "judged"]
    assert memory["step"] > 0 < memory["network"]
    assert memory["text"].startswith("Memory: the largest step (64 x 64 px, batch of 1) takes ")
    assert (kinds[-1], told["state"]) == ("finished", "done")
    assert told["last"] == told["events"][-1]["n"]
    middle = told["events"][5]["n"]
    assert client.get(f"/jobs/{id}/events?after={middle}")["events"] == told["events"][6:]
    few = client.get(f"/jobs/{id}/events?after={middle}&limit=2")
    assert (few["events"], few["last"]) == (told["events"][6:8], told["events"][7]["n"])
    nothing_new = {"events": [], "state": "done", "last": told["last"]}
    assert client.get(f"/jobs/{id}/events?after={told['last']}") == nothing_new

    sampled = next(event for event in told["events"] if event["kind"] == "sampled")
    assert sampled["prompts"] == ["blocks <b>"]
    picture = Client(client.address, "").ask("GET", sampled["images"][0])
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    assert picture.raw.startswith(b"\x89PNG")
    drawn = (tmp_path / "out/lora/samples/lora-000000-01.png").read_bytes()
    assert picture.raw == drawn


def test_orders_over_http(tmp_path, client):
    prompts = {"samples__prompts": ["blocks"], "samples__sampling_steps": 1, "samples__size": 64}
    id = client.post("/jobs", long(tmp_path, samples__every=4999, **prompts))["id"]
    waiting = client.post("/jobs", long(tmp_path))["id"]
    client.until(id, lambda job: job["step"] >= 1)
    assert refused(client, f"/jobs/{waiting}/pause", {}, 409) == [
        "The order was to pause lora-2, but it is queued; give it to a running job."
    ]
    assert client.post(f"/jobs/{waiting}/stop") == {"id": waiting, "state": "stopped"}
    assert client.post(f"/jobs/{id}/pause") == {"id": id, "state": "paused"}
    assert client.post(f"/jobs/{id}/resume") == {"id": id, "state": "running"}
    for order, kind in (("save", "saved"), ("sample", "sampled")):
        before = client.get(f"/jobs/{id}")["step"]
        last = client.get(f"/jobs/{id}/events")["last"]
        client.post(f"/jobs/{id}/{order}")
        for _ in range(1000):
            events = client.get(f"/jobs/{id}/events?after={last}")["events"]
            found = [event for event in events if event["kind"] == kind]
            if found:
                break
        assert before < found[0]["step"] <= before + 3, order  # a step or two may pass between the two requests
    client.post(f"/jobs/{id}/stop")
    job = client.until(id, lambda job: job["state"] == "stopped")
    assert job["resumable"]
    assert refused(client, f"/jobs/{id}/save", {}, 409)
    assert client.post(f"/jobs/{id}/resume")["state"] in ("queued", "running")
    client.until(id, lambda now: now["step"] > job["step"])
    client.post(f"/jobs/{id}/stop")
    client.until(id, lambda job: job["state"] == "stopped")


def test_all_faults_of_the_settings_come_at_once(tmp_path, limited):
    bad = {
        "train_data_dir": "/etc", "network": {"rank": 0}, "trian": 1, "output_name": "../../evil", "lora_path": "a.pt",
        "output.directory": str(tmp_path / "webui" / ".." / "elsewhere"),
    }  # fmt: skip
    faults = refused(limited, "/jobs", bad)
    named = sorted(fault.split()[0] for fault in faults)
    paths = ["data.folder", "network.start_from", "output.directory", "output.name"]
    assert named == sorted([*paths, "network.rank", "trian"]), faults
    assert "a.pt" in next(fault for fault in faults if fault.startswith("network.start_from"))
    assert f"which is {Path.cwd() / 'a.pt'} here" in " ".join(faults)
    assert refused(limited, "/plan", bad) == faults
    assert limited.get("/jobs") == {"jobs": []}


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "a\\b", "..", "a<b>", "a:1", ".hidden", "end.", "nul", "x" * 200, "a\x00", " a", "a\n"]
)
def test_a_name_that_leaves_the_folder_or_the_prompt_is_refused(tmp_path, client, name):
    (fault,) = refused(client, "/plan", {"train_data_dir": str(tmp_path), "output_name": name})
    assert "output.name" in fault


def test_paths_are_limited_links_followed(tmp_path, limited):
    inside, outside = tmp_path / "webui" / "pictures", tmp_path / "secret"
    small_run(tmp_path)
    (tmp_path / "pictures").rename(inside)
    outside.mkdir()
    (tmp_path / "webui" / "way_out").symlink_to(outside)
    assert limited.post("/check", {"folder": str(inside)})["images"] == 6
    below = tmp_path / "webui"
    for place in (outside, below / "way_out", below / "..", "/etc", "pictures", "~", "a\x00b"):
        (fault,) = refused(limited, "/check", {"folder": str(place)})
        assert fault.startswith("folder "), fault
    (tmp_path / "sd1.safetensors").rename(tmp_path / "webui" / "sd1.safetensors")
    run = {"data.folder": str(inside), "data.resolution": 64, "train.steps": 1, "output.name": "small"}
    assert limited.post("/plan", run | {"base_model": "sd1"})["family"] == "sd1"
    assert limited.post("/plan", run | {"base_model": "demo"})["images"] == 6
    (tmp_path / "other.safetensors").write_bytes(b"")
    (fault,) = refused(limited, "/plan", run | {"base_model": str(tmp_path / "other.safetensors")})
    assert fault.startswith("model.base ")
    id = limited.post("/jobs", run | {"base_model": "sd1"})["id"]
    limited.until(id, lambda job: job["state"] == "done")
    assert (tmp_path / "webui/loras/small.safetensors").is_file(), "no folder named, so it is the host's"


def test_a_folder_is_checked(tmp_path, client):
    small_run(tmp_path)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "metadata.csv").write_text("filename,prompt\n0.png,<script>\nnone.png,x\n")
    found = client.post("/check", {"folder": str(tmp_path / "pictures")})
    assert (found["images"], found["captioned"], found["captions_from"]) == (6, 1, {"metadata.csv": 1})
    assert found["captions_missing"] == [f"{n}.png" for n in range(1, 6)]
    assert found["rows_without_image"] == ["none.png"]
    assert [bad["name"] for bad in found["unreadable"]] == ["broken.png"]
    assert len(found["warnings"]) == 3
    assert found["looked_at"] == 6
    by_kind = {finding["kind"]: finding for finding in found["findings"]}
    assert by_kind["unreadable"] == by_kind["unreadable"] | {
        "severity": "error", "count": 1, "images": ["broken.png"], "groups": [],
        "remedy": "left out of the data set by a line in lora_trainer_excluded.txt; no file is touched",
    }  # fmt: skip
    assert "trigger_missing" not in by_kind
    asked = {"folder": str(tmp_path / "pictures"), "trigger": "mycat", "resolution": 64}
    by_kind = {finding["kind"] for finding in client.post("/check", asked)["findings"]}
    assert "trigger_missing" in by_kind
    assert "tiny" not in by_kind
    for name, value in (("trigger", 1), ("resolution", 1), ("resolution", True), ("resolution", "512")):
        (fault,) = refused(client, "/check", asked | {name: value})
        assert fault.startswith(f"{name} is "), fault
    assert "folder is None" in refused(client, "/check", {})[0]
    assert refused(client, "/check", {"folder": "/", "extra": 1})[0].startswith("extra ")
    assert "does not exist" in refused(client, "/check", {"folder": str(tmp_path / "gone")})[0]


def test_a_plan_says_what_will_happen(tmp_path, client):
    plan = client.post("/plan", settings(tmp_path))
    assert (plan["images"], plan["captioned"], plan["steps"], plan["epochs"]) == (6, 6, 6, 1.0)
    assert (plan["resolution"], plan["family"], plan["seconds"]) == (64, "sd1", None)
    assert plan["sentence"] == "6 images, all with captions: 6 steps (1 epochs) at 64 px."
    assert {"name": "steps", "value": "6 (1 epochs)", "reason": "asked for"} in plan["choices"]
    assert not (tmp_path / "out").exists()


def test_the_schema_is_that_of_the_options(client):
    assert client.get("/schema") == json.loads(json.dumps(json_schema()))


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "told"),
    [
        ("GET", "/nothing", None, None, 404, "nothing at /lora_trainer/v1/nothing"),
        ("GET", "/jobs/../../etc/passwd", None, None, 404, ""),
        ("GET", "/jobs/none", None, None, 404, "no job none"),
        ("POST", "/jobs/none/stop", {}, None, 404, "no job none"),
        ("DELETE", "/jobs", None, None, 405, "GET and POST"),
        ("GET", "/plan", None, None, 405, "answers to POST"),
        ("POST", "/jobs", b"{}", {"Content-Type": "text/plain"}, 415, "text/plain"),
        ("POST", "/jobs", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        ("POST", "/jobs/none/stop", b"", {"Content-Type": ""}, 404, "no job none"),
        ("POST", "/jobs/none/stop", b"", {"Content-Type": "", "Origin": "http://elsewhere"}, 415, "not given"),
        ("POST", "/jobs", b"{", None, 400, "not JSON"),
        ("POST", "/jobs", b"\xff\xfe", None, 400, "not UTF-8"),
        ("POST", "/jobs", b"[" * 100_000, None, 400, "nested too deeply"),
        ("POST", "/jobs", b"[]", None, 422, "list"),
        ("POST", "/jobs", b'{"train.learning_rate": NaN}', None, 422, "NaN"),
        ("POST", "/jobs", b'{"network.rank": 1e999}', None, 422, "network.rank"),
        ("POST", "/jobs", b'{"network.rank": 1, "network.rank": 2}', None, 422, "twice"),
        ("POST", "/jobs", b'{"a": "' + b"x" * (1 << 20) + b'"}', None, 413, "bytes"),
        ("POST", "/jobs?resume=perhaps", {}, None, 422, "perhaps"),
    ],
)  # fmt: skip
def test_what_is_no_good_request_is_told_why(client, method, path, body, headers, status, told):
    reply = client.ask(method, path, body, headers)
    assert reply.status == status, reply
    assert told in " ".join(reply.body["faults"])


@pytest.mark.parametrize("after", ["x", "-1", "1e3", "²", "9" * 30, ""])
def test_events_after_no_number_are_refused(tmp_path, client, after):
    id = client.post("/jobs", settings(tmp_path, train__steps=1))["id"]
    from urllib.parse import quote

    assert client.ask("GET", f"/jobs/{id}/events?after={quote(after)}").status == 422
    client.until(id, lambda job: job["state"] == "done")


def test_only_the_pictures_of_the_job_can_be_had(tmp_path, client):
    id = client.post("/jobs", settings(tmp_path, train__steps=1))["id"]
    client.until(id, lambda job: job["state"] == "done")
    for name in ("lora.safetensors", "..%2Flora.safetensors", "%2Fetc%2Fpasswd", "lora-000000-01.png", ".."):
        assert client.ask("GET", f"/jobs/{id}/images/{name}").status == 404, name


def test_without_credentials_nothing_is_answered(tmp_path):
    host = Standalone(runs=tmp_path / "runs")
    registry = Registry(host)
    asked: list[str] = []

    def admit(request: Any) -> bool:
        asked.append(request.url.path)
        return request.headers.get("authorization") == "Basic " + base64.b64encode(b"anna:secret").decode()

    good = {"Authorization": "Basic " + base64.b64encode(b"anna:secret").decode()}
    with served(application(registry, host, admit)) as address:
        client = Client(address)
        for method, path in (("GET", "/jobs"), ("GET", "/schema"), ("POST", "/jobs"), ("POST", "/jobs/x/stop"),
                             ("GET", "/nothing"), ("DELETE", "/jobs"), ("GET", "/jobs/x/images/y")):  # fmt: skip
            reply = client.ask(method, path, {} if method == "POST" else None)
            assert reply.status == 401, path
            assert reply.headers["WWW-Authenticate"].startswith("Basic realm=")
            assert client.ask(method, path, None, good).status != 401
        assert client.ask("GET", "/jobs", None, {"Authorization": "Basic !"}).status == 401
        assert client.ask("GET", "/jobs", None, good).body == {"jobs": []}


def test_mounted_a_second_time_the_routes_are_there_once_and_before_the_hosts_own(tmp_path):
    first, second = (Standalone(runs=tmp_path / name) for name in ("one", "two"))
    app = application(Registry(first), first)
    before = len(app.router.routes)
    mount(app, Registry(second), second, lambda request: False)
    assert len(app.router.routes) == before
    with served(app) as address:
        assert Client(address).ask("GET", "/jobs").status == 401
        assert Client(address, "").get("/anything") == "the page of the host"


def test_an_error_that_nobody_foresaw_is_a_sentence(tmp_path, caplog):
    class Broken(Standalone):
        def paths(self):
            if self.broken:
                raise ZeroDivisionError("secret")
            return super().paths()

    host = Broken(runs=tmp_path)
    host.broken = False
    registry = Registry(host)
    host.broken = True
    with served(application(registry, host)) as address:
        reply = Client(address).ask("POST", "/plan", {"output_name": "x"})
    assert reply.status == 500
    assert reply.body == {"faults": ["The server failed (ZeroDivisionError); its console has the trace."]}
    assert "secret" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_a_server_killed_in_the_middle_of_a_run_goes_on_with_it_by_its_id(tmp_path):
    config = settings(tmp_path, train__steps=12, output__save_steps=2)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}")
    with _server(tmp_path, port) as process:
        id = client.post("/jobs", config)["id"]
        client.until(id, lambda job: job["step"] >= 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with _server(tmp_path, port) as process:
        job = client.get(f"/jobs/{id}")
        assert (job["state"], job["resumable"]) == ("stopped", True)
        assert "The server ended while this was running; Resume goes on from step" in job["message"]
        kept = client.get(f"/jobs/{id}/events")
        assert [event["step"] for event in kept["events"] if event["kind"] == "stepped"][:4] == [1, 2, 3, 4]
        client.post(f"/jobs/{id}/resume")
        job = client.until(id, lambda job: job["state"] == "done")
        assert client.get(f"/jobs/{id}/events?after={kept['last']}")["events"], "numbers rise across the crash"
        process.kill()
    whole = run_all(small_run(tmp_path, **QUICK, train__steps=12, output__directory=str(tmp_path / "whole" / "lora")))
    assert Path(job["files"][-1]).read_bytes() == whole[-1].path.read_bytes()


def _server(folder: Path, port: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.builders.served", str(folder), str(port)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process
