"""tests/host breaks the engine at places that it names; here, where no WebUI is needed, that they are still there."""

from __future__ import annotations

import importlib
import operator

import pytest

from tests.host.breaking import PLACES

OURS = [place for place in PLACES.values() if place[0].startswith("lora_trainer.")]


@pytest.mark.parametrize(("module", "path"), OURS, ids=lambda one: one)
def test_a_place_that_is_broken_for_a_test_exists(module: str, path: str) -> None:
    assert callable(operator.attrgetter(path)(importlib.import_module(module)))
