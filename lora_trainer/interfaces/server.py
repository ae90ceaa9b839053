"""The page and the routes without a WebUI: a small server of our own."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_trainer.contracts import Host, PlainError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from lora_trainer.jobs.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "javascript").glob("*.js"))  # all of them, as a WebUI takes them
FILES = {path.name: path for path in (*SCRIPTS, ROOT / "style.css")}
_FILES_AT = "/lora_trainer/files"
_THIS_MACHINE = ("127.0.0.1", "localhost")
_GRADIO = 6  # its first version whose `mount_gradio_app` takes what stands in the page's head
_LAST_STEP = 120.0  # seconds that a training gets at the end to finish its step and save


class Credentials(NamedTuple):
    """A name and a password that every request has to carry, as HTTP basic authentication has it."""

    user: str
    password: str

    def admit(self, request: Request) -> bool:
        """Whether the request carries them."""
        return self.agree(request.headers.get("authorization", ""))

    def agree(self, header: str) -> bool:
        """Whether an Authorization header holds them; takes as long for a near miss as for a wild guess."""
        scheme, _, token = header.partition(" ")
        try:
            given = base64.b64decode(token, validate=True)
        except (binascii.Error, ValueError):
            return False
        expected = f"{self.user}:{self.password}".encode()
        return scheme.lower() == "basic" and hmac.compare_digest(given, expected)


def serve(host: Host, *, port: int, listen: bool, credentials: Credentials | None) -> None:
    """Serve until Ctrl-C; a training under way is then stopped and saved. Raises PlainError where it cannot begin."""
    _check_gradio()
    door = _door("0.0.0.0" if listen else _THIS_MACHINE[0], port)

    import uvicorn

    from lora_trainer.jobs.registry import registry_of

    app = application(registry_of(host), host, credentials=credentials, names=("*",) if listen else _THIS_MACHINE)
    print(f"LoRA Trainer is at http://{_THIS_MACHINE[0]}:{door.getsockname()[1]} (Ctrl-C ends it).", flush=True)
    if listen and credentials is None:
        print("Everybody who reaches this machine can use it: --auth NAME:PASSWORD asks for a password.", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    try:
        uvicorn.Server(config).run(sockets=[door])
    except KeyboardInterrupt:  # passed on by uvicorn after its orderly end
        return


def application(
    registry: Registry, host: Host, *, credentials: Credentials | None = None, names: Sequence[str] = ("*",)
) -> FastAPI:
    """The page, its files and the routes in one application; `names` are the host names it may be called by.

    Another site's page can make its own name lead to this machine; with `names` such requests are refused.
    """
    from fastapi import FastAPI
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from lora_trainer.interfaces.api.routes import mount
    from lora_trainer.interfaces.ui.alone import hang

    @asynccontextmanager
    async def course(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(registry.close, _LAST_STEP)

    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=list(names))]
    if credentials:
        guards.insert(0, Middleware(_Asked, credentials=credentials))
    # No pages of fastapi's own: they load their scripts from elsewhere.
    app = FastAPI(lifespan=course, middleware=guards, docs_url=None, redoc_url=None, openapi_url=None)
    _offer_files(app)
    hang(app, registry, host, head=_head())
    mount(app, registry, host, credentials.admit if credentials else lambda request: True)
    return app


def _offer_files(app: FastAPI) -> None:
    from starlette.responses import FileResponse
    from starlette.routing import Route

    def of(path: Path) -> Route:
        async def endpoint(request: Request) -> FileResponse:
            return FileResponse(path, headers={"Cache-Control": "no-cache"})

        return Route(f"{_FILES_AT}/{path.name}", endpoint)

    app.router.routes += [of(path) for path in FILES.values()]


def _head() -> str:
    """What a WebUI would put into the page's head for its extensions."""
    scripts = [f'<script src="{_FILES_AT}/{path.name}" defer></script>' for path in SCRIPTS]
    return "\n".join([f'<link rel="stylesheet" href="{_FILES_AT}/style.css">', *scripts])


class _Asked:
    """Lets nothing through, not even a file or a web socket, that does not carry the credentials."""

    def __init__(self, app: ASGIApp, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._credentials.agree(_authorization(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            from lora_trainer.interfaces.api.requests import who_are_you

            await who_are_you("stand-alone")(scope, receive, send)


def _authorization(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), "")


def _door(address: str, port: int) -> socket.socket:
    """The socket to listen at, taken before anything slow is loaded."""
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name != "nt":
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # on Windows it would share a taken port
    try:
        door.bind((address, port))
    except OSError as error:
        door.close()
        raise PlainError(
            f"Port {port} was asked for, but it cannot be used ({error.strerror}); give another one with --port."
        ) from error
    return door


def _check_gradio() -> None:
    remedy = f'python -m pip install "gradio>={_GRADIO}"'
    try:
        found = version("gradio")
    except PackageNotFoundError as error:
        raise PlainError(f"The page needs the package gradio, which is not installed; do so with: {remedy}") from error
    if int(found.partition(".")[0]) < _GRADIO:
        raise PlainError(
            f"The page needs gradio {_GRADIO} or newer, and {found} is installed; in another environment: {remedy}"
        )
