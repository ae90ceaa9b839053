"""Sliders trained in the WebUI on a model that has learned what its prompts mean: the embedded base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from lora_trainer.demo.scenes import Scene, draw
from lora_trainer.demo.show import ASSETS
from tests.host.webui import WebUI

pytestmark = pytest.mark.host

CLIP = "openai/clip-vit-large-patch14"
HOUSE = "a house in a field"
# The WebUI reads names by the two residual blocks that each level of Stable Diffusion has; where the embedded base has
# only one, these are what the names mean in both.
SAME = ["unet.down_blocks.0.(?:attentions|resnets)", "unet.mid_block", "unet.up_blocks.0.(?:attentions|resnets)"]
QUICK = {
    "network__layers": SAME,
    "data__batch_size": 2, "network__rank": 4, "network__alpha": 4, "train__steps": 150, "train__learning_rate": 2e-3,
    "train__schedule": "constant", "train__warmup": 0, "train__seed": 1,
}  # fmt: skip
SEEDS = (1, 2, 3, 4)


def write_scenes(models: Path) -> Path:
    """The embedded base as the WebUI builds it: its text encoder is narrower than the one of CLIP's published settings,
    so that the file of settings names a folder with its own in their place."""
    clip = models / "scenes_clip"
    clip.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        found = try_to_load_from_cache(CLIP, name)
        assert isinstance(found, str), f"{name} of {CLIP} is not in the cache of Hugging Face"
        shutil.copy(found, clip)
    narrow = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "num_hidden_layers": 2}
    settings = {"model_type": "clip_text_model", "projection_dim": 64, "eos_token_id": 2, **narrow}
    (clip / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.copy(ASSETS / "scenes.safetensors", models)
    described = yaml.safe_load((ASSETS / "scenes.yaml").read_text(encoding="utf-8"))
    described["model"]["params"]["cond_stage_config"]["params"] = {"version": str(clip)}
    (models / "scenes.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    return models / "scenes.safetensors"


@pytest.fixture(scope="module")
def scenes(webui: WebUI) -> Iterator[WebUI]:
    """The server with the embedded base loaded."""
    write_scenes(webui.data / "models" / "Stable-diffusion")
    webui.post("/sdapi/v1/refresh-checkpoints")
    webui.options(sd_model_checkpoint="scenes.safetensors")
    assert webui.inside("loaded_checkpoint").startswith("scenes")
    yield webui
    webui.options(sd_model_checkpoint="sd1.safetensors")


def drawn(server: WebUI, prompt: str) -> np.ndarray[Any, Any]:
    """Pictures (N, 64, 64, 3) of four seeds, 0..255."""
    images = [server.draw(prompt, seed=seed, steps=12, cfg_scale=4) for seed in SEEDS]
    return np.stack([np.asarray(image.convert("RGB"), dtype=float) for image in images])


def at_weights(server: WebUI, name: str) -> list[np.ndarray[Any, Any]]:
    return [drawn(server, f"{HOUSE} <lora:{name}:{weight}>") for weight in (-1, 0, 1)]


def trained(server: WebUI, name: str, **settings: Any) -> str:
    """The name of the LoRA of a whole run, which leaves the host as it was and whose file its own loader reads as we
    do."""
    picture, before = server.draw(HOUSE).tobytes(), server.traces()
    job = server.train(output__name=name, **{**QUICK, **settings})
    name = server.wait(job)["lora"]
    told = [event["text"] for event in server.events(job, "told")]
    assert any("knows all of the LoRA's" in text for text in told), told
    assert server.traces() == before
    assert server.draw(HOUSE).tobytes() == picture
    sizes = server.inside("of_file", lora=str(server.lora(name)))["unet"]
    assert sizes["ours"] > 0.02
    assert sizes["apart"] < 0.02 * sizes["ours"]
    return name


def test_two_prompts(scenes: WebUI) -> None:
    """Weight 1 turns the house red, weight -1 blue; learned without a picture of anybody's."""
    name = trained(
        scenes, "red", data__folder="", slider__positive="a red house in a field",
        slider__negative="a blue house in a field", slider__target=HOUSE, slider__pictures=6,
    )  # fmt: skip
    blue, plain, red = (pictures[..., 0].mean() - pictures[..., 2].mean() for pictures in at_weights(scenes, name))
    assert red > plain + 10, (blue, plain, red)
    assert blue < plain - 10, (blue, plain, red)


def test_two_folders(scenes: WebUI) -> None:
    """Weight 1 makes it night, weight -1 day; learned from pairs of one scene."""
    folders = {time: scenes.data / time for time in ("day", "night")}
    for time, folder in folders.items():
        folder.mkdir()
        for number, colour in enumerate(("red", "blue", "green", "yellow", "white", "orange")):
            scene = Scene("house", colour, "field", time)
            path = folder / f"{number}.png"
            Image.fromarray(np.asarray(draw(scene, "plain", 64, np.random.default_rng(number)))).save(path)
            path.with_suffix(".txt").write_text(HOUSE, encoding="utf-8")
    name = trained(scenes, "dark", data__folder=str(folders["night"]), slider__opposite=str(folders["day"]))
    day, plain, night = (pictures.mean() for pictures in at_weights(scenes, name))
    assert night < plain - 8, (day, plain, night)
    assert day > plain + 8, (day, plain, night)
