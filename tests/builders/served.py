"""The routes in a real server, and a client that is no browser.

    python -m tests.builders.served FOLDER PORT

serves a registry whose records are in FOLDER until it is killed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI

from lora_trainer.contracts import Host
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.interfaces.api.routes import PREFIX, mount
from lora_trainer.jobs.registry import Registry

JSON = {"Content-Type": "application/json"}


class Reply(NamedTuple):
    """What came back."""

    status: int
    body: Any  # read as JSON where it is
    headers: Any
    raw: bytes


class Client:
    """Asks one server."""

    def __init__(self, address: str, prefix: str = PREFIX) -> None:
        self.address = address
        self.prefix = prefix

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Any request; a `body` that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if headers is None:
            headers = JSON if method != "GET" else {}
        asked = urllib.request.Request(f"{self.address}{self.prefix}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=60) as reply:
                return _read(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return _read(error.code, error.headers, error.read())

    def get(self, path: str) -> Any:
        """The body of a GET that must succeed."""
        reply = self.ask("GET", path)
        assert reply.status == 200, reply
        return reply.body

    def post(self, path: str, body: Any = None) -> Any:
        """The body of a POST that must succeed."""
        reply = self.ask("POST", path, {} if body is None else body)
        assert reply.status == 200, reply
        return reply.body

    def until(
        self, id: str, condition: Callable[[dict[str, Any]], Any], seconds: float = 90, at: str = "/jobs",
        then: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """Poll a job, or what else lies `at` an address (and `then` behind its id), until it is as wanted."""
        end = time.monotonic() + seconds
        while not condition(job := self.get(f"{at}/{id}{then}")):
            assert time.monotonic() < end, f"it never came to pass: {job}"
            time.sleep(0.01)
        return job


def _read(status: int, headers: Any, raw: bytes) -> Reply:
    is_json = headers.get_content_type() == "application/json"

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in JSON")

    return Reply(status, json.loads(raw, parse_constant=refuse) if is_json and raw else raw, headers, raw)


@contextmanager
def served(app: Any, port: int = 0) -> Iterator[str]:
    """The address of a real server of `app`, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server ended"
        assert time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    found = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{found}"
    finally:
        server.should_exit = True
        thread.join(30)


def application(registry: Registry, host: Host, admit: Callable[[Any], bool] = lambda request: True) -> FastAPI:
    """An application like a WebUI's, with a page of its own, that has our routes."""
    app = FastAPI()

    @app.get("/{rest:path}")
    def whatever(rest: str) -> str:
        return "the page of the host"

    mount(app, registry, host, admit)
    return app


def main(folder: Path, port: int) -> None:
    """Serve until killed."""
    import torch

    torch.set_num_threads(1)  # as in the tests: the last bit depends on it
    host = Standalone(runs=folder / "runs")
    with served(application(Registry(host), host), port):
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
