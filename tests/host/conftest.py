"""The WebUI that the tests of this folder drive.

    pytest tests/host --webui=FOLDER [--webui-python=PYTHON]

FOLDER is a checkout of AUTOMATIC1111's WebUI v1.10.1, PYTHON an environment with its requirements; neither is changed.
Without a network the cache of Hugging Face (HF_HOME) must hold the tokenizer of openai/clip-vit-large-patch14.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.hosted import write_hosted
from tests.builders.prompted import write_hypernetwork, write_prompt_lora
from tests.builders.runs import write_pictures
from tests.host.webui import ROOT, WebUI, prepare, surroundings


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest) -> Path:
    """The WebUI's Python, with what the extension puts beside it."""
    given = request.config.getoption("--webui-python") or Path(request.config.getoption("--webui")) / "venv/bin/python"
    subprocess.run([str(given), str(ROOT / "install.py"), "beside"], env=surroundings(), check=True)
    return Path(given)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, settings, pictures."""
    folder = prepare(tmp_path_factory.mktemp("webui"))
    models = folder / "models" / "Stable-diffusion"
    write_hosted(models / "sd1.safetensors", "sd1", seed=1)
    write_hosted(models / "sd1b.safetensors", "sd1", seed=2)
    write_hosted(models / "sd2v.safetensors", "sd2", seed=3, v_pred=True)
    write_hosted(models / "sdxl.safetensors", "sdxl", seed=4)
    write_hosted(models / "sdxlv.safetensors", "sdxl", seed=5, v_pred=True)
    write_pictures(folder / "pictures")
    return folder


@pytest.fixture(scope="session")
def webui(request: pytest.FixtureRequest, python: Path, data: Path) -> Iterator[WebUI]:
    """One server for all tests; each leaves it with sd1 loaded and nothing under way."""
    server = WebUI(Path(request.config.getoption("--webui")), python, data, "--ckpt", "sd1.safetensors")
    try:
        server.options(sd_model_checkpoint="sd1.safetensors")
        yield server
    finally:
        server.stop()
        if request.session.testsfailed:
            print(server.log[-5000:], file=sys.stderr)


@pytest.fixture(scope="session")
def lora(webui: WebUI) -> str:
    """The name of a LoRA for SD1 that moves UNet and text encoder."""
    write_prompt_lora(webui.lora("prompted"), seed=7)
    webui.post("/sdapi/v1/refresh-loras")
    return "prompted"


@pytest.fixture(scope="session")
def hypernetwork(webui: WebUI) -> str:
    """The name of a hypernetwork for SD1's text states."""
    folder = webui.data / "models" / "hypernetworks"
    folder.mkdir(exist_ok=True)
    write_hypernetwork(folder / "hyper.pt", width=768)
    webui.inside("find_hypernetworks")
    return "hyper"


@pytest.fixture
def sd1(webui: WebUI) -> WebUI:
    """The server with sd1 loaded."""
    webui.options(sd_model_checkpoint="sd1.safetensors")
    return webui


@pytest.fixture
def as_before(sd1: WebUI) -> Iterator[WebUI]:
    """The host, which after the test must be as it was before."""
    picture, before = sd1.draw().tobytes(), sd1.traces()
    yield sd1
    assert sd1.traces() == before
    assert sd1.draw().tobytes() == picture
