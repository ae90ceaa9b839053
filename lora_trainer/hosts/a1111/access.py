"""Who may use our routes. The WebUI guards its own ones only, so we ask for the same credentials here."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from secrets import compare_digest
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.requests import Request

_READS = {"GET", "HEAD", "OPTIONS"}
_COOKIES = ("access-token", "access-token-unsecure")  # gradio 3.41, routes.py: get_current_user


def admit(request: Request) -> bool:
    """Whether the request may pass: credentials of --api-auth or --gradio-auth where asked for, and no foreign page.

    Either kind will do where both are set; where none is set, everybody may.
    """
    return _is_our_page(request) and _has_credentials(request)


def _has_credentials(request: Request) -> bool:
    users = [*_api_users(), *_page_users()]
    if not users:
        return True
    return _is_logged_in(request) or _is_known(request.headers.get("authorization", ""), users)


def _api_users() -> Iterator[tuple[str, str]]:
    """(name, password), separated as the WebUI's own API does (modules/api/api.py, Api.__init__)."""
    from modules import shared

    for pair in (shared.cmd_opts.api_auth or "").split(","):
        name, colon, password = pair.partition(":")
        if colon:
            yield name, password


def _page_users() -> Iterator[tuple[str, str]]:
    from modules import initialize_util

    for pair in initialize_util.get_gradio_auth_creds():
        yield pair[0], pair[1] if len(pair) > 1 else ""


def _is_logged_in(request: Request) -> bool:
    """By the page's cookie, which gradio gives after a login with --gradio-auth."""
    from modules import shared

    app = getattr(getattr(shared, "demo", None), "server_app", None)  # `app` is another one, that is not served
    if app is None or getattr(app, "auth", None) is None:
        return False
    token = next((request.cookies[name] for name in _COOKIES if request.cookies.get(name)), None)
    return token is not None and app.tokens.get(token) is not None


def _is_known(authorization: str, users: list[tuple[str, str]]) -> bool:
    kind, _, packed = authorization.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        given = base64.b64decode(packed.strip(), validate=True)
    except binascii.Error:
        return False
    same = [compare_digest(given, f"{name}:{password}".encode()) for name, password in users]
    return any(same)  # every pair was compared, and to its end, so that the time tells nothing


def _is_our_page(request: Request) -> bool:
    """Not one that a foreign page makes a visitor's browser send; what only reads, such a page cannot see."""
    if request.method in _READS:
        return True
    headers = request.headers
    if headers.get("sec-fetch-site") in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") is None  # curl and the like
    ours = {headers.get("host", ""), headers.get("x-forwarded-host", "")} - {""}
    return urlsplit(origin).netloc in ours or _is_allowed(origin)


def _is_allowed(origin: str) -> bool:
    """By --cors-allow-origins or --cors-allow-origins-regex."""
    from modules import shared

    listed = (shared.cmd_opts.cors_allow_origins or "").split(",")
    pattern = shared.cmd_opts.cors_allow_origins_regex
    return origin in listed or "*" in listed or bool(pattern and re.fullmatch(pattern, origin))
