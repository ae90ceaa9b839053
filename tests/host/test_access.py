"""Our routes ask for the credentials that the host asks for, and let no foreign page in (section 7)."""

from __future__ import annotations

import base64
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from tests.host.webui import Refused, WebUI

pytestmark = pytest.mark.host

JOBS = "/lora_trainer/v1/jobs"
ORDER = "/lora_trainer/v1/jobs/none/stop"  # 404 for whoever is let in


@pytest.fixture(scope="module")
def guarded(request: pytest.FixtureRequest, python: Path, data: Path) -> Iterator[WebUI]:
    """A server that asks for both kinds of credentials."""
    folder = Path(request.config.getoption("--webui"))
    flags = ("--api-auth", "robot:r0bot,other:colon", "--gradio-auth", "person:pass word")
    server = WebUI(folder, python, data, "--ckpt", "sd1.safetensors", *flags)
    yield server
    server.stop()


def basic(pair: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def status(server: WebUI, path: str = ORDER, **headers: str) -> int:
    try:
        server.post(path, None, **{name.replace("_", "-"): value for name, value in headers.items()})
    except Refused as refused:
        return refused.status
    return 200


def test_without_credentials_nobody_gets_in(guarded: WebUI) -> None:
    with pytest.raises(Refused) as refused:
        guarded.get(JOBS)
    assert refused.value.status == 401
    for wrong in ("robot:wrong", "robot:", "robot", "nobody:r0bot", "robot:r0bot,other:colon", "pérson:x"):
        assert status(guarded, **basic(wrong)) == 401, wrong
    assert status(guarded, Authorization="Basic !!!") == 401
    assert status(guarded, Authorization="Bearer robot:r0bot") == 401
    assert status(guarded, Cookie="access-token=guessed") == 401


@pytest.mark.parametrize("pair", ["robot:r0bot", "other:colon", "person:pass word"])
def test_either_kind_of_credentials_lets_in(guarded: WebUI, pair: str) -> None:
    assert status(guarded, **basic(pair)) == 404


def test_the_cookie_of_the_pages_login_lets_in(guarded: WebUI) -> None:
    jar = CookieJar()
    page = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    form = urllib.parse.urlencode({"username": "person", "password": "pass word"}).encode()
    page.open(guarded.url + "/login", form)
    (token,) = {cookie.value for cookie in jar}
    assert status(guarded, Cookie=f"access-token-unsecure={token}") == 404
    assert status(guarded, Cookie=f"access-token={token}") == 404
    assert status(guarded, Cookie=f"access-token={token}x") == 401


def test_a_foreign_page_gives_no_orders(sd1: WebUI) -> None:
    assert status(sd1) == 404
    assert status(sd1, Origin=sd1.url) == 404
    assert status(sd1, Origin="https://elsewhere.example") == 401
    assert status(sd1, Origin="null") == 401
    assert status(sd1, Sec_Fetch_Site="cross-site") == 401
    assert status(sd1, Sec_Fetch_Site="same-origin", Origin=sd1.url) == 404
