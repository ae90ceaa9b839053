"""What goes wrong ends in a sentence, a usable WebUI and saved work (sections 3 and 9)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.hosted import write_inpainting, write_refiner
from tests.builders.runs import write_pictures
from tests.host.test_training import learnt
from tests.host.webui import Refused, WebUI, prepare

pytestmark = pytest.mark.host


def faults(server: WebUI, **settings: object) -> str:
    with pytest.raises(Refused) as refused:
        server.train(**settings)
    assert refused.value.status == 422
    return " ".join(refused.value.body["faults"])


def test_another_checkpoint_must_be_chosen_first(as_before: WebUI) -> None:
    assert "choose sd1b.safetensors" in faults(as_before, model__base="sd1b.safetensors")


def test_paths_outside_are_refused(as_before: WebUI, tmp_path: Path) -> None:
    assert "outside" in faults(as_before, data__folder=str(write_pictures(tmp_path / "elsewhere")))
    assert "name" in faults(as_before, output__name="../escaped")
    assert not list(as_before.data.rglob("escaped*"))


def test_a_folder_that_vanishes(as_before: WebUI) -> None:
    """Not cached, so that each step reads its pictures."""
    pictures = write_pictures(as_before.data / "vanishing")
    job = as_before.train(
        data__folder=str(pictures), data__cache="none", train__steps=500, output__name="vanished",
    )  # fmt: skip
    as_before.wait(job, step=2)
    shutil.rmtree(pictures)
    failed = as_before.wait(job, "failed")
    assert "vanishing" in failed["message"]


def test_two_starts_are_queued(as_before: WebUI) -> None:
    first, second = as_before.train(output__name="first"), as_before.train(output__name="second")
    assert as_before.job(second)["state"] in ("queued", "running")
    as_before.wait(first)
    as_before.wait(second)
    assert learnt(as_before.lora("first")) == learnt(as_before.lora("second"))


def test_a_name_that_is_taken_is_numbered(as_before: WebUI) -> None:
    for _ in range(2):
        job = as_before.wait(as_before.train(output__name="taken", train__steps=2))
    assert job["lora"] == "taken-2"
    assert as_before.lora("taken").exists()


@pytest.mark.parametrize(
    ("write", "words"), [(write_inpainting, "an inpainting model"), (write_refiner, "the SDXL refiner")]
)
def test_a_model_that_is_not_supported(as_before: WebUI, write: Callable[..., Path], words: str) -> None:
    name = f"{write.__name__}.safetensors"
    write(as_before.data / "models" / "Stable-diffusion" / name, seed=8)
    as_before.post("/sdapi/v1/refresh-checkpoints")
    as_before.options(sd_model_checkpoint=name)
    assert name in as_before.inside("loaded_checkpoint")
    before = as_before.traces()
    said = faults(as_before)
    assert words in said
    assert name in said
    assert "choose" in said
    assert as_before.traces() == before
    as_before.options(sd_model_checkpoint="sd1.safetensors")


def test_no_checkpoint_at_all(request: pytest.FixtureRequest, python: Path, data: Path, tmp_path: Path) -> None:
    """The WebUI starts without one; a sentence says so, and once a checkpoint is there all goes on."""
    own = prepare(tmp_path / "empty")
    write_pictures(own / "pictures")
    server = WebUI(Path(request.config.getoption("--webui")), python, own, loads=False)
    try:
        for _ in range(2):
            said = faults(server, output__name="first")
            assert "no checkpoint" in said
            assert "models/Stable-diffusion" in said
        for name in ("sd1.safetensors", "sd1.yaml"):
            shutil.copy(data / "models" / "Stable-diffusion" / name, own / "models" / "Stable-diffusion")
        server.post("/sdapi/v1/refresh-checkpoints")
        server.wait(server.train(output__name="first"))
        assert server.draw().getbbox()
    finally:
        server.stop()


@pytest.mark.parametrize("where", ["step", "save"])
def test_an_error_of_ours_leaves_the_host_usable(as_before: WebUI, where: str) -> None:
    job = as_before.train(output__name=f"broken {where}", train__steps=50, output__save_steps=4)
    as_before.wait(job, step=1)
    as_before.inside("break_engine", where=where)
    try:
        failed = as_before.wait(job, "failed")
    finally:
        as_before.inside("mend_engine")
    assert failed["message"]
    assert "made for the test" in failed["message"]


def test_after_a_crash_the_run_goes_on(
    request: pytest.FixtureRequest, python: Path, data: Path, tmp_path: Path
) -> None:
    """The server is killed in the middle; the next one lists the run, and resumes it to the same bytes."""
    own = prepare(tmp_path / "crash")
    write_pictures(own / "pictures")
    for name in ("sd1.safetensors", "sd1.yaml"):
        shutil.copy(data / "models" / "Stable-diffusion" / name, own / "models" / "Stable-diffusion")
    folder = Path(request.config.getoption("--webui"))
    server = WebUI(folder, python, own, "--ckpt", "sd1.safetensors")
    try:
        server.wait(server.train(output__name="whole", train__steps=12))
        job = server.train(output__name="killed", train__steps=12, output__save_steps=3)
        server.wait(job, step=7)
    finally:
        server.stop(kill=True)
    server = WebUI(folder, python, own, "--ckpt", "sd1.safetensors")
    try:
        found = server.job(job)
        assert found["state"] == "stopped"
        assert found["resumable"]
        server.post(f"/lora_trainer/v1/jobs/{job}/resume")
        server.wait(job)
        assert learnt(server.lora("killed")) == learnt(server.lora("whole"))
    finally:
        server.stop()
