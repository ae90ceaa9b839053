"""What holds for every test: no network, one thread, and words for what is left out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Before any test imports the libraries that read them. Nothing may be fetched, ever.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start; install.py runs two at a time
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else each forked test process warns

# The same examples at each run, none kept on disk, and no minutes spent on finding the shortest failing one.
hypothesis.settings.register_profile(
    "here", derandomize=True, database=None, deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)  # fmt: skip
hypothesis.settings.load_profile("here")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the tests of tests/host need: see the conftest there."""
    parser.addoption("--webui", metavar="FOLDER", help="a checkout of A1111's WebUI, or of Forge, for tests/host")
    parser.addoption("--webui-python", metavar="PYTHON", help="its Python; default: FOLDER/venv/bin/python")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The same number on every machine, because the order of a sum's parts, and so its last bit, depends on it."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, in words, what this machine cannot run; and begin with what takes longest, so that none waits for it."""
    wanting = {"host": _no_host(config), "forge": _no_forge(config), "gpu": _no_gpu(items)}
    for item in items:
        for marker, reason in wanting.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _no_host(config: pytest.Config) -> str:
    if config.getoption("--webui") and not _is_forge(config):
        return ""
    return "drives a real WebUI: give its folder with --webui=FOLDER, its Python with --webui-python=PYTHON"


def _no_forge(config: pytest.Config) -> str:
    if _is_forge(config):
        return ""
    return "reads with Forge's own loader: give its folder with --webui=FOLDER, its Python with --webui-python=PYTHON"


def _is_forge(config: pytest.Config) -> bool:
    return (Path(config.getoption("--webui") or "") / "backend/patcher/lora.py").is_file()


def _no_gpu(items: list[pytest.Item]) -> str:
    if not any(item.get_closest_marker("gpu") for item in items):
        return ""  # do not import torch for it
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device, and torch finds none"
