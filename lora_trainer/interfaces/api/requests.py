"""What comes in over HTTP, taken with care: who asks, how much, and whether it is what the route wants."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lora_trainer.contracts import PlainError
from lora_trainer.interfaces.api.forms import answer, faults

LARGEST_BODY = 1 << 20  # bytes; a configuration has some hundreds
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

JSON, BYTES = "application/json", "application/octet-stream"

Admit = Callable[[Request], bool]
Handler = Callable[[Request], Awaitable[Response]]
AnyHandler = TypeVar("AnyHandler", bound=Callable[..., Awaitable[Response]])

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that ends here, with its status and a sentence for each fault."""

    def __init__(self, status: int, *sentences: str) -> None:
        super().__init__(*sentences)
        self.status = status


def guarded(handlers: Mapping[str, Handler], admit: Admit, host: str) -> Handler:
    """One endpoint for all verbs of a route: asks for credentials first, and turns every refusal into JSON.

    `host` is the name under which a browser asks for the password.
    """

    async def endpoint(request: Request) -> Response:
        try:
            if not await run_in_threadpool(admit, request):
                return who_are_you(host)
            verb = "GET" if request.method == "HEAD" else request.method
            if verb not in handlers:
                return _not_here(request, handlers)
            if verb != "GET":
                _check_type(request, getattr(handlers[verb], "takes", JSON))
            return await handlers[verb](request)
        except Refused as refused:
            return answer({"faults": list(refused.args)}, refused.status)
        except PlainError as error:
            return answer({"faults": faults(error)}, 422)
        except Exception as error:  # what nobody foresaw: its trace is the console's, the page gets a sentence
            _log.error("%s %s failed.", request.method, request.url.path, exc_info=error)
            return answer({"faults": [f"The server failed ({type(error).__name__}); its console has the trace."]}, 500)

    return endpoint


def who_are_you(host: str) -> Response:
    """401, so that a browser asks for the name and password."""
    headers = {"WWW-Authenticate": f'Basic realm="LoRA Trainer, {host}", charset="UTF-8"'}
    return answer({"faults": ["Give the name and password that this server asks for."]}, 401, headers)


def _not_here(request: Request, handlers: Mapping[str, Handler]) -> Response:
    if not handlers:
        return answer({"faults": [f"There is nothing at {request.url.path}; docs/api.md lists the addresses."]}, 404)
    told = f"{request.method} was asked, but this address answers to {' and '.join(handlers)}."
    return answer({"faults": [told]}, 405, {"Allow": ", ".join(handlers)})


def takes_bytes(handler: AnyHandler) -> AnyHandler:
    """Mark a handler whose body is a file, and no JSON."""
    vars(handler)["takes"] = BYTES
    return handler


def _check_type(request: Request, wanted: str) -> None:
    """Other sites' pages can make a browser send forms, plain text and empty bodies here, but neither JSON nor bytes
    without a kind; and with whatever they do send, browsers say from where."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given == wanted or (not given and _is_empty(request) and not _from_another_site(request)):
        return
    raise Refused(415, f"The content type is {given or 'not given'}; send Content-Type: {wanted}.")


def _is_empty(request: Request) -> bool:
    return request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers


def _from_another_site(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


async def mapping_of(request: Request, most: int = LARGEST_BODY) -> dict[str, Any]:
    """The JSON object in the body, of `most` bytes; an empty body is an empty object."""
    body = await _body(request, most)
    if not body.strip():
        return {}
    try:
        found = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise Refused(400, f"The body is not UTF-8 text (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise Refused(400, f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise Refused(400, "The body is nested too deeply.") from error
    except ValueError as error:  # a number of thousands of digits
        raise Refused(400, f"The body holds a number that cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise Refused(422, f"The body holds a {type(found).__name__} where an object with settings is wanted.")
    return found


async def save_body(request: Request, path: Path, room: int) -> int:
    """Write the body to a file as it comes, and move it into place when it is whole; returns its bytes.

    `room` is the most that may come, whatever was said before.
    """
    unfinished = path.with_name(f".{secrets.token_hex(8)}")
    size = 0
    try:
        with unfinished.open("xb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > room:
                    raise Refused(413, f"{path.name} has more bytes than the {room:,} that are taken.")
                await run_in_threadpool(file.write, chunk)
        unfinished.replace(path)
    except OSError as error:
        told = f"{path.name} could not be written ({error.strerror or error}): make room on the server's disk."
        raise Refused(507, told) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return size


async def _body(request: Request, most: int) -> bytes:
    """All of it, unless it is too large; one that lies about its length is cut off while it comes."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise Refused(413, f"The body has more than {most:,} bytes; settings have some hundreds.")
        chunks.append(chunk)
    return b"".join(chunks)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(422, f"{twice} is given twice; keep one.")
    return found


def _no_number(word: str) -> None:
    raise Refused(422, f"{word} is not a number; give a finite one.")


def number_of(request: Request, name: str, default: int, high: int) -> int:
    """A whole number of the query, from 0 to `high`."""
    given = request.query_params.get(name, str(default))
    if not given.isdecimal() or not given.isascii() or len(given) > len(str(high)) or int(given) > high:
        raise Refused(422, f"{name} is {given!r}, but a whole number from 0 to {high} is wanted.")
    return int(given)


def switch_of(request: Request, name: str) -> bool:
    """A switch of the query: 1 or true, 0 or false; off where it is left out."""
    given = request.query_params.get(name, "0").lower()
    if given not in ("0", "1", "true", "false"):
        raise Refused(422, f"{name} is {given!r}, but 1 or 0 is wanted.")
    return given in ("1", "true")
