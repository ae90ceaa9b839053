"""Faults put into a training in the host, place by place (section 9): a sentence, a usable WebUI, saved work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.builders.runs import write_pictures
from tests.host.mounting import mounted
from tests.host.test_failing import faults
from tests.host.test_training import learnt
from tests.host.webui import PATIENCE, WebUI

pytestmark = pytest.mark.host

NEAR = 0.2  # of the weights' size: Adam's first steps are about as long whatever the gradient, its rounding included
LEAST = 40  # characters of a sentence that says what happened and what to do


@pytest.fixture
def host(as_before: WebUI) -> Iterator[WebUI]:
    """The host as before, whole again after the test."""
    yield as_before
    as_before.inside("mend_engine")
    for job in as_before.get("/lora_trainer/v1/jobs")["jobs"]:  # of a test that failed half-way
        if job["state"] in ("queued", "running", "paused"):
            as_before.post(f"/lora_trainer/v1/jobs/{job['id']}/stop")


def told(server: WebUI, job: str) -> str:
    return "\n".join(event["text"] for event in server.events(job, "told"))


def proper(message: str) -> str:
    """A message that is a sentence: one line, no trace, with an end."""
    assert "\n" not in message
    assert "Traceback" not in message
    assert message.endswith(".")
    assert len(message) > LEAST
    return message


@pytest.fixture(scope="module")
def undisturbed(webui: WebUI) -> dict[str, bytes]:
    """What eight steps learn when nothing else happens."""
    webui.options(sd_model_checkpoint="sd1.safetensors")
    webui.wait(webui.train(output__name="eight", train__steps=8))
    return learnt(webui.lora("eight"))


@pytest.mark.parametrize(
    ("where", "how"), [("forward", "cuda"), ("forward", "cpu"), ("backward", "cuda"), ("update", "cuda")]
)
def test_out_of_memory_says_what_to_lower_and_is_gone_on_from(
    host: WebUI, undisturbed: dict[str, bytes], where: str, how: str
) -> None:
    job = host.train(output__name=f"starved {where} {how}", train__steps=8, output__save_steps=2)
    host.wait(job, step=3)
    host.post(f"/lora_trainer/v1/jobs/{job}/pause")
    host.wait(job, "paused")
    before = host.inside("memory", collect=True)
    host.inside("break_engine", where=where, how=how)
    host.post(f"/lora_trainer/v1/jobs/{job}/resume")
    failed = host.wait(job, "failed")
    message = proper(failed["message"])
    assert message.startswith("Out of memory on cpu after step ")
    assert "set a resolution below 64" in message
    assert failed["files"]
    assert failed["files"][-1] in message
    assert host.inside("memory", collect=True) < before + 2**24, "the failed run has kept memory"
    host.inside("mend_engine")
    assert failed["resumable"]
    host.post(f"/lora_trainer/v1/jobs/{job}/resume")
    host.wait(job)
    found = learnt(host.lora(f"starved {where} {how}"))
    if where == "update":
        assert found == undisturbed
    else:  # the measures that were taken stay: batches go through in pieces, and sums in another order round otherwise
        assert "in pieces of 1" in told(host, job)
        assert apart(found, undisturbed) < NEAR


def apart(some: dict[str, bytes], others: dict[str, bytes]) -> float:
    """How far two files' weights are apart, against their size."""
    assert some.keys() == others.keys()
    one, other = (
        np.concatenate([np.frombuffer(file[name], np.float16).astype(float) for name in sorted(file)])
        for file in (some, others)
    )
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_out_of_memory_in_the_first_step(host: WebUI) -> None:
    host.inside("break_engine", where="update", how="cuda")
    message = proper(host.wait(host.train(output__name="at once"), "failed")["message"])
    assert "before anything was saved; set a resolution below 64, and start again" in message


def test_out_of_memory_while_encoding(host: WebUI) -> None:
    host.inside("break_engine", where="encode", how="cpu")
    failed = host.wait(host.train(output__name="unencoded"), "failed")
    assert "Out of memory on cpu while images were encoded" in proper(failed["message"])
    assert "set a resolution below 64" in failed["message"]
    assert not list(host.data.rglob("unencoded*")), "a run that did not begin leaves no files"


@pytest.mark.parametrize(("how", "words"), [("cuda", "Lower samples.size"), ("error", "made for the test")])
def test_samples_that_fail_cost_no_training(host: WebUI, undisturbed: dict[str, bytes], how: str, words: str) -> None:
    """At the start, on the way and in the proof at the end."""
    host.inside("break_engine", where="sample", how=how)
    name = f"undrawn {how}"
    job = host.train(output__name=name, train__steps=8, samples__prompts=["a red boat"], samples__every=4)
    host.wait(job)
    said = told(host, job)
    for step in (0, 4, 8):
        assert f"No samples were drawn at step {step}, the training goes on" in said
    assert words in said
    assert "The LoRA is saved, but the WebUI could not try it" in said
    assert learnt(host.lora(name)) == undisturbed


@pytest.mark.parametrize("where", ["state", "announce"])
def test_what_fails_beside_the_lora_costs_no_lora(host: WebUI, undisturbed: dict[str, bytes], where: str) -> None:
    host.inside("break_engine", where=where)
    job = host.train(output__name=f"without {where}", train__steps=8, output__save_steps=4)
    host.wait(job)
    assert learnt(host.lora(f"without {where}")) == undisturbed


def test_an_error_in_the_step_saves_the_steps_before(host: WebUI, undisturbed: dict[str, bytes]) -> None:
    job = host.train(output__name="stumbled", train__steps=8)
    host.wait(job, step=3)
    host.inside("break_engine", where="step")
    failed = host.wait(job, "failed")
    assert "made for the test" in proper(failed["message"])
    assert "is saved; Resume goes on from there" in failed["message"]
    host.inside("mend_engine")
    host.post(f"/lora_trainer/v1/jobs/{job}/resume")
    host.wait(job)
    assert learnt(host.lora("stumbled")) == undisturbed


def test_an_error_in_the_last_save_loses_nothing(host: WebUI, undisturbed: dict[str, bytes]) -> None:
    job = host.train(output__name="unsaved", train__steps=8)
    host.wait(job, step=2)
    host.inside("break_engine", where="save")
    failed = host.wait(job, "failed")
    assert "All 8 steps are done, but ZeroDivisionError: made for the test" in proper(failed["message"])
    host.inside("mend_engine")
    host.post(f"/lora_trainer/v1/jobs/{job}/resume")
    host.wait(job)
    assert learnt(host.lora("unsaved")) == undisturbed


def test_a_vae_that_answers_nan_is_named(host: WebUI) -> None:
    host.inside("break_engine", where="encode", how="nan")
    failed = host.wait(host.train(output__name="dark"), "failed")
    assert "VAE" in proper(failed["message"])
    assert "use another VAE" in failed["message"]


def test_a_loss_that_is_no_number_keeps_the_last_good_weights(host: WebUI) -> None:
    job = host.train(output__name="diverged", train__steps=500, output__save_steps=2)
    host.wait(job, step=3)
    host.inside("break_engine", where="step", how="nan")
    failed = host.wait(job, "failed")
    assert "Lower learning_rate, and start again" in proper(failed["message"])
    assert "mixed_precision" not in failed["message"]
    assert "last good weights" in failed["message"]
    assert failed["files"]
    assert failed["files"][-1] in failed["message"]


def test_a_learning_rate_that_is_far_too_high(host: WebUI) -> None:
    """The loss diverges by itself; what was saved before lies in the Lora folder."""
    job = host.train(
        output__name="far too high", train__steps=60, train__learning_rate=10.0, train__schedule="constant",
        output__save_steps=2,
    )  # fmt: skip
    failed = host.wait(job, "failed")
    assert "three times in a row" in proper(failed["message"])
    assert "Lower learning_rate, and start again" in failed["message"]
    assert len(host.events(job, "skipped")) >= 3


def test_a_picture_that_is_damaged_meanwhile(host: WebUI) -> None:
    pictures = write_pictures(host.data / "damaged")
    job = host.train(data__folder=str(pictures), data__cache="none", train__steps=500, output__name="damaged")
    host.wait(job, step=2)
    for path in pictures.glob("*.png"):
        path.write_bytes(b"no picture any more")
    failed = host.wait(job, "failed")
    assert ".png" in proper(failed["message"])
    assert "is saved" in failed["message"]
    assert failed["resumable"]


def test_nobody_looks(host: WebUI, undisturbed: dict[str, bytes]) -> None:
    """No request from the start to the end, as when the browser is closed."""
    job = host.train(output__name="unseen", train__steps=8)
    deadline = time.monotonic() + PATIENCE
    while not host.lora("unseen").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    host.wait(job)
    assert learnt(host.lora("unseen")) == undisturbed


def test_starts_at_the_same_moment(host: WebUI) -> None:
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda _: host.train(output__name="at a time", train__steps=2), range(4)))
    names = {host.wait(job)["name"] for job in jobs}
    assert names == {"at a time", "at a time-2", "at a time-3", "at a time-4"}
    assert all(learnt(host.lora(name)) == learnt(host.lora("at a time")) for name in names)


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_lora_folder_that_is_read_only_is_told_at_the_start(host: WebUI) -> None:
    with mounted(host.data / "models" / "Lora") as disk:
        disk.close()
        assert "read-only" in proper(faults(host, output__name="nowhere"))
    assert not host.lora("nowhere").exists()


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_lora_folder_that_refuses_in_the_end(host: WebUI, undisturbed: dict[str, bytes], fault: str) -> None:
    """Checkpoints are missed, the LoRA goes beside its states, and to its place once there is room."""
    with mounted(host.data / "models" / "Lora") as disk:
        job = host.train(output__name=f"homeless {fault}", train__steps=8, output__save_steps=4)
        host.wait(job, step=1)
        disk.fill() if fault == "full" else disk.close()
        failed = host.wait(job, "failed")
        assert "Step 4 was not saved, the training goes on" in told(host, job)
        message = proper(failed["message"])
        assert message.startswith("All 8 steps are done, but ")
        assert ("the disk is full" if fault == "full" else "closed to this user") in message
        (elsewhere,) = [Path(path) for path in failed["files"]]
        assert f"The LoRA is in {elsewhere} instead." in message
        assert learnt(elsewhere) == undisturbed
        disk.free() if fault == "full" else disk.open()
        host.post(f"/lora_trainer/v1/jobs/{job}/resume")
        host.wait(job)
        assert learnt(host.lora(f"homeless {fault}")) == undisturbed


def test_a_disk_that_is_full_altogether(host: WebUI) -> None:
    """LoRA, states and log on one disk: the LoRA is where the system keeps its temporary files. So many steps, because
    a file's last block has room left on a full disk, for some thousand characters of log."""
    with mounted(host.data / "tiny") as disk:
        folder = disk.folder / "run"
        job = host.train(output__directory=str(folder), train__steps=60, output__save_steps=30)
        host.wait(job, step=1)
        disk.fill()
        failed = host.wait(job, "failed")
        said, message = told(host, job), proper(failed["message"])
        assert "Step 30 was not saved, the training goes on" in said
        assert "The log has gaps" in said
        assert "The run cannot be resumed from step 60" in said
        assert "the disk is full" in message
        (elsewhere,) = [Path(path) for path in failed["files"]]
        assert str(elsewhere) in message
        assert sum(any(tensor) for tensor in learnt(elsewhere).values()) > 100
        elsewhere.unlink()


def test_a_disk_that_is_full_from_the_start(host: WebUI) -> None:
    with mounted(host.data / "tiny") as disk:
        disk.fill()
        job = host.train(output__directory=str(disk.folder / "run"))
        assert "the disk is full" in proper(host.wait(job, "failed")["message"])
