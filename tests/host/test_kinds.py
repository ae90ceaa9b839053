"""Every kind of network: the WebUI's own loader gives what our layers give, and what it cannot read is said before."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders.networks import FORMS
from tests.host.webui import WebUI

pytestmark = pytest.mark.host

KINDS = ("lora", "locon", "dora", "loha", "lokr", "oft")
# Of the change: the WebUI adds the change to the weight in float32, our layers to the output.
TOLERANCE = 2e-3


@pytest.fixture(params=["sd1", "sd2v", "sdxl"])
def loaded(request: pytest.FixtureRequest, webui: WebUI) -> Any:
    """The server with each family's checkpoint loaded in turn."""
    webui.options(sd_model_checkpoint=f"{request.param}.safetensors")
    yield webui
    webui.options(sd_model_checkpoint="sd1.safetensors")


def agree(judged: dict[str, dict[str, float]]) -> None:
    """Both change the answers, by much more than what lies between the two."""
    for name, sizes in judged.items():
        assert sizes["ours"] > 0.02, (name, sizes)
        assert sizes["apart"] < TOLERANCE * sizes["ours"], (name, sizes)


@pytest.mark.parametrize("form", FORMS)
def test_the_webuis_loader_gives_our_output(sd1: WebUI, form: str) -> None:
    before = sd1.traces()
    agree(sd1.inside("compared", form=form, name=f"form {form}".replace(" ", "_")))
    assert sd1.traces() == before


@pytest.mark.parametrize("form", KINDS)
def test_so_in_every_family(loaded: WebUI, form: str) -> None:
    agree(loaded.inside("compared", form=form, name=f"everywhere_{form}"))


@pytest.mark.parametrize("form", ["lora", "locon", "dora", "loha", "lokr", "oft", "pissa", "olora", "rslora"])
def test_what_a_training_writes_does_so_too(sd1: WebUI, form: str) -> None:
    """The file of a whole run, in half precision, drawn with by the WebUI's own txt2img."""
    settings = {f"network__{name}": value for name, value in FORMS[form].items()}
    name = f"trained_{form}"
    job = sd1.train(output__name=name, train__text_encoder_learning_rate=1e-2, **settings)
    sd1.wait(job)
    told = [event["text"] for event in sd1.events(job, "told")]
    assert any("knows all of the LoRA's" in text for text in told), told
    judged = sd1.inside("of_file", lora=str(sd1.lora(name)))
    for part, sizes in judged.items():
        assert sizes["ours"] > 1e-4, (part, sizes)
        assert sizes["apart"] < 0.02 * sizes["ours"], (part, sizes)
    assert sd1.draw(f"a red boat <lora:{name}:1>").tobytes() != sd1.draw().tobytes()
