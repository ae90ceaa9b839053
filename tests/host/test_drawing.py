"""Samples by the host's own txt2img, LoRA announced and proved (sections 4 and 5)."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.builders.prompted import write_prompt_lora
from tests.host.webui import WebUI

pytestmark = pytest.mark.host


def digest(image) -> str:
    return hashlib.blake2b(image.convert("RGB").tobytes()).hexdigest()


def sampler(infotext: str) -> dict[str, str]:
    """The sampler that an infotext names, as txt2img wants it."""
    settings = dict(part.split(": ", 1) for part in infotext.splitlines()[-1].split(", ") if ": " in part)
    return {"sampler_name": settings["Sampler"], "scheduler": settings["Schedule type"]}


def test_a_sample_is_the_picture_that_txt2img_gives(sd1: WebUI, tmp_path: Path) -> None:
    """A LoRA far from the Lora folder is drawn with, and gives the same pixels once it lies there."""
    path = write_prompt_lora(tmp_path / "of the moment.safetensors", seed=21)
    sample, infotext = sd1.inside("drawn", prompts=["a red boat"], lora=str(path))[0]
    assert infotext.startswith("a red boat <lora:of the moment:1>\n")
    assert "Lora hashes" in infotext
    plain, _ = sd1.inside("drawn", prompts=["a red boat"])[0]
    assert sample != plain
    shutil.copy(path, sd1.data / "models" / "Lora")
    sd1.post("/sdapi/v1/refresh-loras")
    assert digest(sd1.draw("a red boat <lora:of the moment:1>", **sampler(infotext))) == sample
    assert digest(sd1.draw("a red boat", **sampler(infotext))) == plain


def test_each_prompt_has_the_next_seed(sd1: WebUI) -> None:
    both = sd1.inside("drawn", prompts=["a red boat", "a blue house"], seed=5)
    assert digest(sd1.draw("a blue house", seed=6, **sampler(both[1][1]))) == both[1][0]


def test_drawing_leaves_no_trace(sd1: WebUI, tmp_path: Path) -> None:
    path = write_prompt_lora(tmp_path / "gone.safetensors", seed=22)
    picture = digest(sd1.draw())
    before = sd1.traces(), sd1.get("/sdapi/v1/loras")
    settings = sd1.inside("settings")
    sd1.inside("drawn", prompts=["a red boat"], lora=str(path))
    assert (sd1.traces(), sd1.get("/sdapi/v1/loras")) == before
    assert sd1.inside("settings") == settings
    assert digest(sd1.draw()) == picture
    assert not list((sd1.data / "outputs").rglob("*.png")) if (sd1.data / "outputs").exists() else True


def test_a_lora_trained_again_under_its_name_is_used(sd1: WebUI) -> None:
    """Without the announcement the second file is not used: the layers compare name and weight only."""
    prompt, path = "a red boat <lora:again:1>", sd1.lora("again")
    write_prompt_lora(path, seed=31)
    sd1.inside("announced", lora=str(path))
    first = digest(sd1.draw(prompt))
    write_prompt_lora(path, seed=32)
    assert digest(sd1.draw(prompt)) == first
    sd1.inside("announced", lora=str(path))
    second = digest(sd1.draw(prompt))
    assert second != first
    write_prompt_lora(sd1.lora("fresh"), seed=32)
    sd1.inside("announced", lora=str(sd1.lora("fresh")))
    assert digest(sd1.draw("a red boat <lora:fresh:1>")) == second


def test_an_announced_lora_has_its_card_without_a_refresh(sd1: WebUI) -> None:
    path = write_prompt_lora(sd1.lora("carded"), seed=33)
    assert "carded" in sd1.inside("cards", announce="")[0]  # what the page shows that is opened after the announcement
    path.unlink()
    sd1.post("/sdapi/v1/refresh-loras")


def test_the_hosts_own_loader_proves_a_lora(sd1: WebUI, tmp_path: Path) -> None:
    good = sd1.inside("proved", lora=str(write_prompt_lora(tmp_path / "good.safetensors", seed=41)))
    assert [level for level, _ in good] == ["info", "info"]
    assert "all of the LoRA's 5 layers" in good[0][1]
    assert "of 255 on average" in good[1][1]
    astray = sd1.inside("proved", lora=str(write_prompt_lora(tmp_path / "astray.safetensors", seed=41, more=2)))
    assert astray[0][0] == "warning"
    assert "2 of the LoRA's 7 layers, such as lora_unet_nowhere_0" in astray[0][1]
    path = write_prompt_lora(tmp_path / "faint.safetensors", seed=41, strength=1e-6)
    faint = sd1.inside("proved", lora=str(path))
    assert faint[1][0] == "warning"
    assert "nothing that shows" in faint[1][1]
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-50])
    assert [level for level, _ in sd1.inside("proved", lora=str(broken))] == ["warning"]
