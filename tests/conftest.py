"""What holds for every test: no network, two threads, and words for what is left out."""

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
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else each forked test process warns

# The same examples at each run, none kept on disk, and no minutes spent on finding the shortest failing one.
hypothesis.settings.register_profile(
    "here", derandomize=True, database=None, deadline=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)  # fmt: skip
hypothesis.settings.load_profile("here")


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    """The same number on every machine, because the order of a sum's parts, and so its last bit, depends on it."""
    import torch

    torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, in words, what this machine cannot run."""
    wanting = {"host": _no_host(), "gpu": _no_gpu(items)}
    for item in items:
        for marker, reason in wanting.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _no_host() -> str:
    return "" if os.environ.get("LORA_TRAINER_HOST") else "starts a real WebUI: set LORA_TRAINER_HOST to its folder"


def _no_gpu(items: list[pytest.Item]) -> str:
    if not any(item.get_closest_marker("gpu") for item in items):
        return ""  # do not import torch for it
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device, and torch finds none"
