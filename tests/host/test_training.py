"""A whole training in the host: the same bytes as the command line's, and the host as before (sections 2, 3, 4, 5)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from tests.host.webui import ROOT, WebUI, small_training, surroundings

pytestmark = pytest.mark.host


def learnt(path: Path) -> dict[str, bytes]:
    """Every tensor of a LoRA file, by its bytes: what was learnt, without the notes of when."""
    with safe_open(str(path), "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in sorted(file.keys())}


@pytest.fixture(scope="module")
def undisturbed(webui: WebUI) -> dict[str, bytes]:
    """What twelve steps learn when nothing else happens."""
    webui.options(sd_model_checkpoint="sd1.safetensors")
    webui.wait(webui.train(output__name="undisturbed", train__steps=12))
    return learnt(webui.lora("undisturbed"))


def test_the_host_is_as_before(sd1: WebUI) -> None:
    picture, before = sd1.draw().tobytes(), sd1.traces()
    sd1.wait(sd1.train(output__name="guest"))
    assert sd1.traces() == before
    assert sd1.draw().tobytes() == picture
    assert sd1.get("/sdapi/v1/progress")["state"]["job"] == ""


@pytest.mark.parametrize("checkpoint", ["sd1", "sd2v", "sdxl"])
def test_the_bytes_are_the_command_lines(webui: WebUI, python: Path, tmp_path: Path, checkpoint: str) -> None:
    webui.options(sd_model_checkpoint=f"{checkpoint}.safetensors")
    more = {"train__text_encoder_learning_rate": 1e-3} if checkpoint == "sd1" else {}
    webui.wait(webui.train(output__name=f"inside-{checkpoint}", **more))
    base = webui.data / "models" / "Stable-diffusion" / f"{checkpoint}.safetensors"
    settings = small_training(webui.data, {"model__base": str(base), "output__directory": str(tmp_path), **more})
    by_command_line(python, tmp_path, settings)
    (lora,) = tmp_path.glob("*.safetensors")
    outside = learnt(lora)
    assert learnt(webui.lora(f"inside-{checkpoint}")) == outside
    assert sum(any(tensor) for tensor in outside.values()) > 100  # it learnt something everywhere


def by_command_line(python: Path, folder: Path, settings: dict[str, Any]) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    packages = ROOT / "beside" / "packages"
    environment = {**surroundings(), "PYTHONPATH": os.pathsep.join(map(str, (ROOT, packages)))}
    command = [str(python), "-m", "lora_trainer", "train", "--config", str(folder / "run.yaml")]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_generating_meanwhile_changes_neither(sd1: WebUI, undisturbed: dict[str, bytes], lora: str) -> None:
    prompts = ["a red boat", f"a red boat <lora:{lora}:0.7>", "a (blue:1.3) house"]
    pictures = [sd1.draw(prompt).tobytes() for prompt in prompts]
    job = sd1.train(output__name="disturbed", train__steps=12)
    drawn = 0
    while sd1.job(job)["state"] != "done":
        assert sd1.draw(prompts[drawn % 3]).tobytes() == pictures[drawn % 3]
        drawn += 1
    assert drawn >= 3
    assert learnt(sd1.lora("disturbed")) == undisturbed


def test_a_run_waits_for_its_checkpoint(sd1: WebUI, undisturbed: dict[str, bytes]) -> None:
    job = sd1.train(output__name="waited", train__steps=12)
    sd1.wait(job, step=2)
    sd1.options(sd_model_checkpoint="sd1b.safetensors")
    step = sd1.wait(job, "running", "paused")["step"]
    other = sd1.draw().tobytes()
    assert sd1.job(job)["step"] <= step + 1 < 12
    assert any("sd1b.safetensors" in event.get("text", "") for event in sd1.events(job, "told"))
    sd1.options(sd_model_checkpoint="sd1.safetensors")
    sd1.wait(job)
    assert learnt(sd1.lora("waited")) == undisturbed
    assert sd1.draw().tobytes() != other


def test_stop_and_resume_lose_nothing(sd1: WebUI, undisturbed: dict[str, bytes]) -> None:
    job = sd1.train(output__name="resumed", train__steps=12)
    sd1.wait(job, step=3)
    sd1.post(f"/lora_trainer/v1/jobs/{job}/stop")
    stopped = sd1.wait(job, "stopped")
    assert 3 <= stopped["step"] < 12
    sd1.post(f"/lora_trainer/v1/jobs/{job}/resume")
    sd1.wait(job)
    assert learnt(sd1.lora("resumed")) == undisturbed


def test_a_pause_leaves_the_device_to_others(sd1: WebUI, undisturbed: dict[str, bytes]) -> None:
    picture = sd1.draw().tobytes()
    job = sd1.train(output__name="paused", train__steps=12)
    sd1.wait(job, step=3)
    sd1.post(f"/lora_trainer/v1/jobs/{job}/pause")
    step = sd1.wait(job, "paused")["step"]
    sd1.options(sd_model_checkpoint="sdxl.safetensors")
    sd1.options(sd_model_checkpoint="sd1.safetensors")
    assert sd1.draw().tobytes() == picture
    assert sd1.job(job)["step"] <= step + 1 < 12
    sd1.post(f"/lora_trainer/v1/jobs/{job}/resume")
    sd1.wait(job)
    assert learnt(sd1.lora("paused")) == undisturbed


def test_the_hosts_interrupt_stops_and_saves(sd1: WebUI) -> None:
    before = sd1.traces()
    job = sd1.train(output__name="interrupted", train__steps=500)
    sd1.wait(job, step=2)
    shown = sd1.get("/sdapi/v1/progress")
    assert shown["state"]["job"] == "LoRA training"
    assert 0 < shown["progress"] < 1
    sd1.post("/sdapi/v1/interrupt")
    stopped = sd1.wait(job, "stopped")
    assert stopped["files"]
    assert sd1.traces() == before


def test_reload_ui_does_not_stop_a_run(sd1: WebUI, undisturbed: dict[str, bytes]) -> None:
    job = sd1.train(output__name="reloaded", train__steps=12)
    sd1.wait(job, step=2)
    sd1.reload_page()
    sd1.wait(job)
    assert learnt(sd1.lora("reloaded")) == undisturbed


def test_samples_are_the_pictures_of_txt2img(sd1: WebUI) -> None:
    job = sd1.train(
        output__name="sampled", output__save_steps=3, samples__prompts=["a red boat"], samples__every=3,
        samples__sampling_steps=3, samples__seed=9,
    )  # fmt: skip
    sd1.wait(job)
    found = {event["step"]: event["images"] for event in sd1.events(job, "sampled")}
    assert sorted(found) == [0, 3, 6]
    sampler = {"sampler_name": "DPM++ 2M", "scheduler": "Automatic", "seed": 9, "cfg_scale": 7.5}
    for step, name in ((3, "sampled-000003"), (6, "sampled")):
        sample = sd1.picture(found[step][0])
        assert sample.info["parameters"].startswith(f"a red boat <lora:sampled-{step:06d}:1>")
        scale = sample.info["parameters"].partition("CFG scale: ")[2].partition(",")[0]
        drawn = sd1.draw(f"a red boat <lora:{name}:1>", **{**sampler, "cfg_scale": float(scale)})
        assert hashes(drawn) == hashes(sample), step
    assert hashes(sd1.picture(found[0][0])) != hashes(sd1.picture(found[6][0]))


def hashes(image: Any) -> str:
    return hashlib.blake2b(image.convert("RGB").tobytes()).hexdigest()


def test_the_result_is_listed_with_its_card(sd1: WebUI) -> None:
    sd1.wait(sd1.train(output__name="listed"))
    assert "listed" in {each["name"] for each in sd1.get("/sdapi/v1/loras")}
    assert "listed" in sd1.inside("page")[0]


def test_a_training_adds_no_second_model(sd1: WebUI) -> None:
    """Memory during the steps, above that before: far below the model's own size, of which CLIP-L is most. (A prompt
    LoRA, such as the proof at the end, makes the WebUI keep a copy of every weight for a while.)"""
    sd1.wait(sd1.train(output__name="warm"))  # imports, and what the allocator keeps
    before, size = sd1.inside("memory", collect=True), sd1.inside("adopted")["bytes"]
    job = sd1.train(output__name="measured", train__steps=30)
    seen = []
    while (now := sd1.job(job))["step"] < 30:
        if now["step"]:
            seen.append(sd1.inside("memory"))
        time.sleep(0.2)
    assert max(seen) - before < size / 2, (seen, before, size)
    sd1.wait(job)
    assert sd1.inside("memory", collect=True) - before < size / 10, "the run has kept memory"
