"""The WebUI started in other ways: its model not loaded yet, kept in pieces, with a VAE of its own (section 2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.hosted import hosted_checkpoint
from tests.host.test_training import learnt
from tests.host.webui import WebUI

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def medvram(request: pytest.FixtureRequest, python: Path, data: Path) -> Iterator[WebUI]:
    """With --medvram, and without a model until one is asked for."""
    from safetensors.torch import save_file

    vae = hosted_checkpoint("sd1", seed=77)
    start = "first_stage_model."
    save_file(
        {name.removeprefix(start): tensor for name, tensor in vae.items() if name.startswith(start)},
        str(data / "models" / "VAE" / "other.safetensors"),
    )
    folder = Path(request.config.getoption("--webui"))
    flags = ("--ckpt", "sd1.safetensors", "--medvram", "--skip-load-model-at-start")
    server = WebUI(folder, python, data, *flags, loads=False)
    yield server
    server.stop()


def test_a_model_in_pieces_is_loaded_and_trained(sd1: WebUI, medvram: WebUI) -> None:
    """The parts come to the device by our hands and go again: the same bytes are learnt."""
    sd1.wait(sd1.train(output__name="in one piece"))
    assert medvram.inside("ready") is False
    medvram.wait(medvram.train(output__name="in pieces"))
    assert learnt(medvram.lora("in pieces")) == learnt(sd1.lora("in one piece"))
    assert medvram.inside("on_device") is None  # nothing of ours is noted there any more
    picture = medvram.draw().tobytes()
    assert picture == sd1.draw().tobytes()


def test_a_vae_of_its_own_is_what_is_trained_with(medvram: WebUI) -> None:
    medvram.options(sd_vae="other.safetensors")
    found = medvram.inside("lent")
    assert found["differing"]
    assert {name.partition(".")[0] for name in found["differing"]} == {"first_stage_model"}
    medvram.wait(medvram.train(output__name="other vae"))
    assert learnt(medvram.lora("other vae")) != learnt(medvram.lora("in pieces"))
    medvram.options(sd_vae="Automatic")
    medvram.wait(medvram.train(output__name="own vae"))
    assert learnt(medvram.lora("own vae")) == learnt(medvram.lora("in pieces"))
