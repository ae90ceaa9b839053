"""Put into a test's WebUI as an extension: a route by which a test calls a function of tests/host/inside.py there."""

import faulthandler
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from modules import script_callbacks
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_EXTENSIONS = Path(__file__).resolve().parents[2]
_ROOT = str((_EXTENSIONS / "lora-trainer").resolve())


def _started(_: Any, app: FastAPI) -> None:
    app.add_route("/host_tests/{check}", _called, methods=["GET", "POST"])


async def _called(request: Request) -> Response:
    arguments = await request.json() if request.method == "POST" else {}
    return JSONResponse(await run_in_threadpool(_call, request.path_params["check"], arguments))


def _call(check: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if _ROOT not in sys.path:
        sys.path.append(_ROOT)
    try:
        from tests.host import inside

        return {"returned": getattr(inside, check)(**arguments)}
    except BaseException:
        return {"trace": traceback.format_exc()}


if hasattr(signal, "SIGUSR1"):
    faulthandler.register(signal.SIGUSR1)  # `kill -USR1` writes into the log where every thread stands
script_callbacks.on_app_started(_started)
