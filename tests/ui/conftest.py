"""A server of our own and a browser's tab, for the tests of the page."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.browsed import browsing, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def tab() -> Iterator[Any]:
    with browsing() as page:
        yield page
