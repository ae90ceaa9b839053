"""`python -m lora_trainer ui`: a real process, asked as a browser asks."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the package gradio is not installed: the page is made with it")

from lora_trainer.config.load import dump
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.interfaces import server
from lora_trainer.interfaces.cli import BAD_INPUT, main
from tests.builders.runs import run_all, small_run
from tests.builders.served import JSON, Client

pytestmark = [pytest.mark.ui, pytest.mark.newest_only]
ROOT = Path(__file__).parents[2]
QUICK = {"train__text_encoder_learning_rate": 0.0, "data__batch_size": 1}


@contextmanager
def page(folder: Path, *words: str):
    """A process that serves, and the address it prints."""
    with subprocess.Popen(
        [sys.executable, "-m", "lora_trainer", "ui", "--port", "0", *words], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},  # as here: the last bit depends on it
    ) as process:  # fmt: skip
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stdout.read()
        try:
            yield process, found[0]
        finally:
            process.kill()


def wait_for(client: Client, path: str, headers: dict[str, str] | None = None):
    """The address is told before the door is opened to it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return client.ask("GET", path, None, headers)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server never answered")


def test_the_page_its_files_and_the_routes_are_served_from_here_alone(tmp_path):
    with page(tmp_path) as (_, address):
        client = Client(address, "")
        html = wait_for(client, "/")
        assert html.status == 200
        text = html.raw.decode()
        assert "/lora_trainer/files/lora_trainer.js" in text
        for name, file in server.FILES.items():
            assert client.ask("GET", f"/lora_trainer/files/{name}").raw == file.read_bytes()
        assert client.ask("GET", "/lora_trainer/v1/jobs").body == {"jobs": []}
        loaded = re.findall(r'<(?:script|link)[^>]*(?:src|href)="(https?://[^"]+)"', text)
        assert [url for url in loaded if not url.startswith(address)] == []
        odd = client.ask("GET", "/lora_trainer/v1/jobs", None, {"Host": "evil.example"})
        assert odd.status == 400, "a name that another site let lead here"


def test_with_a_password_nothing_is_had_without_it(tmp_path):
    with page(tmp_path, "--auth", "anna:se:cret") as (_, address):
        client = Client(address, "")
        good = {"Authorization": "Basic " + base64.b64encode(b"anna:se:cret").decode()}
        assert wait_for(client, "/", good).status == 200
        for path in ("/", "/config", "/lora_trainer/v1/jobs", "/lora_trainer/files/style.css", "/gradio_api/info"):
            for headers in ({}, {"Authorization": "Basic " + base64.b64encode(b"anna:se:cres").decode()},
                            {"Authorization": "Bearer x"}, {"Authorization": "Basic"}):  # fmt: skip
                reply = client.ask("GET", path, None, headers)
                assert reply.status == 401, path
                assert reply.headers["WWW-Authenticate"].startswith("Basic ")
        assert client.ask("GET", "/lora_trainer/v1/jobs", None, good).status == 200


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends signals as POSIX knows them")
def test_an_orderly_end_saves_the_training_and_it_can_be_gone_on_with(tmp_path):
    """By Ctrl-C, then by SIGTERM, then to the end: the file is that of an uninterrupted run."""
    options = QUICK | {"train__steps": 14, "output__save_steps": 0}
    id, step = "", 0
    for how in (signal.SIGINT, signal.SIGTERM, None):
        with page(tmp_path, "--loras", str(tmp_path / "loras")) as (process, address):
            client = Client(address)
            wait_for(client, "/jobs")
            if id:
                job = client.get(f"/jobs/{id}")
                assert (job["state"], job["resumable"]) == ("stopped", True)
                step = job["step"]
                client.post(f"/jobs/{id}/resume")
            else:
                id = client.post("/jobs", dump(small_run(tmp_path, **options)))["id"]
            if how:
                client.until(id, lambda job, step=step: job["step"] >= step + 2)
                process.send_signal(how)
                assert process.wait(60) in (0, -how)
            else:
                job = client.until(id, lambda job: job["state"] == "done")
    whole = run_all(small_run(tmp_path, **options, output__directory=str(tmp_path / "whole" / "lora")))
    assert Path(job["files"][-1]).read_bytes() == whole[-1].path.read_bytes()


def test_listening_to_all_keeps_requests_inside_of_the_folders(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        small_run(folder)
    with page(inside, "--listen") as (_, address):
        client = Client(address)
        wait_for(client, "/jobs")
        assert client.post("/check", {"folder": str(inside / "pictures")})["images"] == 6
        reply = client.ask("POST", "/check", {"folder": str(outside / "pictures")}, JSON)
        assert reply.status == 422
        assert "outside of the folders" in reply.body["faults"][0]


def test_what_keeps_it_from_serving_is_told_in_a_sentence(tmp_path, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == BAD_INPUT
    assert f"Port {port} was asked for" in capsys.readouterr().err
    monkeypatch.setattr(server, "version", lambda package: "3.41.2")
    assert main(["ui"]) == BAD_INPUT
    assert "gradio 6 or newer, and 3.41.2 is installed" in capsys.readouterr().err

    def missing(package):
        raise server.PackageNotFoundError(package)

    monkeypatch.setattr(server, "version", missing)
    assert main(["ui"]) == BAD_INPUT
    assert 'python -m pip install "gradio>=6"' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ui", "--auth", "anna"])
    assert "--auth anna:secret" in capsys.readouterr().err


def test_a_checkpoint_is_found_by_its_name(tmp_path):
    (tmp_path / "deep.model.safetensors").write_bytes(b"")
    host = Standalone(checkpoints=[tmp_path / "none", tmp_path])
    assert host.base_file("deep.model") == tmp_path / "deep.model.safetensors"
    assert host.base_file("deep.model.safetensors") == tmp_path / "deep.model.safetensors"
    assert host.base_file("else") == Path("else")
    assert host.base_file("") is None
