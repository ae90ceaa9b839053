"""A model hub of our own on this machine: what huggingface_hub asks of one when it lists and fetches a repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files of a folder as one repository; `breaks_at` bytes a file's first transfer is cut off."""

    daemon_threads = True

    def __init__(self, folder: Path, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.repository = repository
        self.breaks_at: dict[str, int] = {}
        self.asked: list[tuple[str, str, str]] = []  # method, path, range

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        files = [file for file in sorted(hub.folder.iterdir()) if file.is_file()]
        prefix = f"/{hub.repository}/resolve/"
        if path.startswith(f"/api/models/{hub.repository}/tree/"):
            listing = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _tag(file)}
                       for file in files]  # fmt: skip
            self._send(json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif path in (f"/api/models/{hub.repository}", f"/api/models/{hub.repository}/revision/main"):
            info = {"id": hub.repository, "sha": COMMIT, "siblings": _sizes(files)}
            self._send(json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif path.startswith(prefix) and (file := hub.folder / path.rpartition("/")[2]).is_file():
            self._send_file(file, with_body=with_body)
        else:
            self.send_error(404)

    def _send_file(self, file: Path, *, with_body: bool) -> None:
        content, start = file.read_bytes(), 0
        headers = {"ETag": f'"{_tag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        breaks_at = self.server.breaks_at.pop(file.name, None) if with_body else None
        self._send(content[start:], headers, 206 if asked else 200, with_body=with_body, breaks_at=breaks_at)

    def _send(
        self, body: bytes, headers: dict[str, str], code: int = 200, *, with_body: bool = True,
        breaks_at: int | None = None,
    ) -> None:  # fmt: skip
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:breaks_at])
        if breaks_at is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


def _sizes(files: list[Path]) -> list[dict[str, object]]:
    return [{"rfilename": file.name, "size": file.stat().st_size} for file in files]


def _tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def served(folder: Path, repository: str) -> Iterator[Hub]:
    """The hub, answering until the block ends."""
    hub = Hub(folder, repository)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
