"""The lent checkpoint: the host's own tensors, whatever it did with them before (section 2)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.webui import WebUI

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("checkpoint", "family", "prediction"),
    [("sd1", "sd1", "epsilon"), ("sd2v", "sd2", "v_prediction"), ("sdxl", "sdxl", "epsilon")],
)
def test_the_tensors_are_those_of_the_file(webui: WebUI, checkpoint: str, family: str, prediction: str) -> None:
    webui.options(sd_model_checkpoint=f"{checkpoint}.safetensors")
    found = webui.inside("lent")
    assert found["differing"] == []
    assert found["missing"] == []
    assert found["more"] == []
    assert found["header"]
    assert (found["name"], found["owned"]) == (checkpoint, False)
    assert found["facts"]["family"] == family
    assert found["facts"]["prediction"] == found["facts of the file"]["prediction"] == prediction


def test_v_prediction_and_zero_terminal_snr_are_read(webui: WebUI) -> None:
    """From two empty tensors in the file, which the WebUI does not load into its model."""
    webui.options(sd_model_checkpoint="sdxlv.safetensors")
    found = webui.inside("lent")
    assert found["missing"] == ["v_pred", "ztsnr"]
    assert found["facts"]["prediction"] == "v_prediction"
    assert found["facts"]["zero_terminal_snr"] is True
    assert found["facts"] == found["facts of the file"]


@pytest.mark.parametrize("checkpoint", ["sd1", "sd2v", "sdxl"])
def test_adopting_copies_nothing(webui: WebUI, checkpoint: str) -> None:
    webui.options(sd_model_checkpoint=f"{checkpoint}.safetensors")
    found = webui.inside("adopted")
    assert found["shared"] == found["parameters"] > 700  # UNet 686 and VAE 248 in SD1 and SD2, and the text encoders
    assert found["trainable"] == 0
    assert found["grown"] < found["bytes"] / 10


def test_traces_of_earlier_generations_do_not_reach_our_modules(sd1: WebUI, hypernetwork: str, lora: str) -> None:
    untouched = sd1.inside("predicted")
    weights = sd1.inside("weights")["digest"]
    sd1.draw(f"a red boat <lora:{lora}:1>")
    assert sd1.inside("weights")["merged"] > 0  # the generation did leave its LoRA in the weights
    assert sd1.inside("weights")["digest"] != weights
    assert sd1.inside("predicted") == untouched
    assert sd1.inside("weights")["digest"] == weights
    sd1.draw(f"a red boat <hypernet:{hypernetwork}:1>")
    assert sd1.inside("predicted") == untouched
    sd1.draw(override_settings={"token_merging_ratio": 0.5}, override_settings_restore_afterwards=False)
    assert sd1.inside("predicted") == untouched
    sd1.options(token_merging_ratio=0)
    for optimisation in ("sdp", "sub-quadratic", "InvokeAI", "V1"):
        sd1.options(cross_attention_optimization=optimisation)
        assert sd1.inside("predicted") == untouched, optimisation
    sd1.options(cross_attention_optimization="Automatic")


def test_a_prompt_lora_is_used_again_after_it_was_taken_out(sd1: WebUI, lora: str) -> None:
    prompt = f"a red boat <lora:{lora}:1>"
    first, plain = sd1.draw(prompt), sd1.draw()
    assert first.tobytes() != plain.tobytes()
    sd1.draw(prompt)
    sd1.inside("predicted")
    assert sd1.inside("weights")["copies"] == 0  # the host's copies on the CPU are freed with it
    assert sd1.draw(prompt).tobytes() == first.tobytes()
    assert sd1.draw().tobytes() == plain.tobytes()


def test_a_switched_checkpoint_is_noticed_and_taken_back(sd1: WebUI) -> None:
    before, said, after = sd1.inside("away", checkpoint="sd1b.safetensors")
    assert before == after
    assert "sd1b.safetensors" in said
    assert "choose sd1.safetensors" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"devices__fp8": True}, '"FP8 weight" to "Disable"'),
        ({"shared__cmd_opts__lowvram": True}, "--medvram"),
        ({"base": "sd1b.safetensors"}, "choose sd1b.safetensors"),
        ({"base": "nowhere.safetensors"}, "in no list of checkpoints"),
    ],
)
def test_what_cannot_be_trained_upon_is_refused_in_words(sd1: WebUI, settings: dict[str, Any], words: str) -> None:
    assert words in sd1.inside("refused", **settings)


def test_the_loaded_checkpoint_has_many_names(sd1: WebUI) -> None:
    path = sd1.data / "models" / "Stable-diffusion" / "sd1.safetensors"
    for name in ("", "sd1", "sd1.safetensors", str(path)):
        assert sd1.inside("refused", base=name) == "", name
    assert sd1.inside("refused", base="demo").endswith("scenes.safetensors")
