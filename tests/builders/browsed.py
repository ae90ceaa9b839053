"""The page in a real browser, served by a real process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

MARKS = [
    pytest.mark.ui,
    pytest.mark.slow,
    pytest.mark.newest_only,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that was started in `folder`, with its address."""
    command = [sys.executable, "-m", "lora_trainer", "ui", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://[\w.:]+", line)
        assert found, line
        yield process, found[0]
        process.kill()


@contextmanager
def browsing() -> Iterator[Any]:
    """An empty tab of a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def goto(tab: Any, address: str) -> None:
    """The address is told before the door is opened to it."""
    from playwright.sync_api import Error

    for _ in range(150):
        try:
            tab.goto(address)
            return
        except Error:
            tab.wait_for_timeout(200)
    raise AssertionError("the server never answered")


def field(path: str) -> str:
    """The selector of a setting's field in the form."""
    return f"#lt_{path} input, #lt_{path} textarea"
