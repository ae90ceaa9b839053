"""Every kind of network: Forge's own loader gives what our layers give, and the one it cannot read is said before.

    pytest tests/host/test_forge.py --webui=FOLDER [--webui-python=PYTHON]

FOLDER is a checkout of lllyasviel/stable-diffusion-webui-forge, PYTHON an environment with its requirements.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.jobs.readers import READERS, unread_note
from tests.builders.networks import FORMS, KINDS
from tests.host.webui import ROOT, surroundings

pytestmark = pytest.mark.forge

TOLERANCE = 1e-4  # of the change: Forge adds it to the weight, our layers to the output


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/host/forge.py found in one process."""
    forge = Path(request.config.getoption("--webui")).resolve()
    python = request.config.getoption("--webui-python") or forge / "venv/bin/python"
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [str(python), "-m", "tests.host.forge", str(forge), str(tmp_path_factory.mktemp("forge")), "--always-cpu"],
        cwd=ROOT, env={**surroundings(), "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def kind_of(form: str) -> str:
    return str(FORMS.get(form, {}).get("kind", "lora"))


@pytest.mark.parametrize("form", [form for form in (*FORMS, "everywhere") if kind_of(form) in READERS["Forge"]])
@pytest.mark.parametrize("kind", KINDS)
def test_forges_loader_gives_our_output(found: dict[str, Any], kind: str, form: str) -> None:
    judged = found[f"{kind} {form}"]
    assert "unmatched" not in judged["said"]
    assert "mismatch" not in judged["said"]
    for part, sizes in judged["sizes"].items():
        assert sizes["base"] < TOLERANCE, (part, sizes)  # the two answer alike without a network
        assert sizes["ours"] > 0.02, (part, sizes)
        assert sizes["apart"] < TOLERANCE * sizes["ours"], (part, sizes)


@pytest.mark.parametrize("form", [form for form in FORMS if kind_of(form) not in READERS["Forge"]])
@pytest.mark.parametrize("kind", KINDS)
def test_what_it_cannot_read_is_left_out_by_it_and_told_by_us(found: dict[str, Any], kind: str, form: str) -> None:
    judged = found[f"{kind} {form}"]
    assert "mismatch" in judged["said"]
    assert all(sizes["theirs"] == 0 for sizes in judged["sizes"].values())
    (told,) = unread_note(kind_of(form), "AUTOMATIC1111")
    assert "Forge cannot read" in told
    assert "plain LoRA" in told
