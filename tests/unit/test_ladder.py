"""Out of memory, at every kind of place: a measure is taken, told and kept, and the run learns what it would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.config.load import load
from lora_trainer.contracts import Batch, Event, Finished, PlainError, Stepped, TextStates, Told
from lora_trainer.data.dataset import DataSet
from lora_trainer.families import thrift
from lora_trainer.families.diffusion import DiffusionBase
from lora_trainer.families.registry import family_named
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs import image_output, samples
from lora_trainer.jobs.checkpoints import newest_state
from lora_trainer.jobs.files import run_files
from lora_trainer.jobs.run import Controls, run
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.optimizers import Updater
from lora_trainer.train.pieces import Pieces
from lora_trainer.weights.read import open_checkpoint
from tests.builders.networks import lent
from tests.builders.runs import run_all, small_run, write_pictures

CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
APPLE = RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB, max allowed: 9 GB).")


def told(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Told))


def learnt(folder: Path, name: str = "lora") -> dict[str, torch.Tensor]:
    return load_file(folder / "lora" / f"{name}.safetensors")


def near(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float) -> None:
    """As wholes: where a gradient is all but zero, AdamW's first steps turn its rounding into a full step."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (second[name] - tensor).norm() <= tolerance * tensor.norm(), name


def failing(real: Callable[..., Any], error: Exception, *calls: int) -> Callable[..., Any]:
    """`real`, which fails at the calls of these numbers (from 1) and does nothing then."""
    made = 0

    def call(*given: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if made in calls:
            raise error
        return real(*given, **named)

    return call


def config(folder: Path, name: str, **options: Any) -> Any:
    """Three steps with pictures of two latent cells a side at the lowest level: the UNet's norms refuse a single
    picture of a single cell."""
    write_pictures(folder / "pictures", count=4, sides=((128, 128),))
    given = {
        "data__resolution": 128, "output__precision": "fp32", "output__directory": str(folder / name / "lora"),
        "train__text_encoder_learning_rate": 0.0, "train__steps": 3, "output__save_steps": 0, **options,
    }  # fmt: skip
    return small_run(folder, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What the run learns when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("whole")
    run_all(config(folder, "whole"))
    return learnt(folder / "whole")


@pytest.mark.parametrize(("place", "name", "error"), [
    (DiffusionLoss, "__call__", CUDA), (Updater, "backward", APPLE), (Updater, "update", MemoryError()),
    (DataSet, "__call__", OSError(12, "Cannot allocate memory")),
], ids=["forward", "backward", "update", "batch"])  # fmt: skip
def test_a_step_that_starved_is_done_again_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor], place: type, name: str,
    error: Exception,
):  # fmt: skip
    tried_before = place is DiffusionLoss or name == "backward"  # the step that is tried before the run
    monkeypatch.setattr(place, name, failing(getattr(place, name), error, 2 + tried_before))
    events = run_all(config(tmp_path, "starved"))
    said = told(events)
    assert "Out of memory in step 2, which is done again: activations are computed anew" in said
    assert "set train.gradient_checkpointing: yes" in said
    again = name == "update"  # half of the weights may be a step ahead: back to the last state that was kept
    assert ("the steps from 1 on are done again" in said) == again
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, *([1] * again), 2, 3]
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "done"
    near(whole, learnt(tmp_path / "starved"), 1e-5)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_activations_computed_anew_leave_the_text_encoders_their_gradients(tmp_path: Path, family: str):
    """Some releases of torch and transformers lose them where no input of a layer wants a gradient."""
    more = {"train__text_encoder_learning_rate": 1e-2, "train__steps": 1, "data__resolution": 64}
    kept, anew = (
        run_all(small_run(tmp_path, family, **config_of(tmp_path / asked), **more, train__gradient_checkpointing=asked))
        for asked in ("no", "yes")
    )
    assert kept[-1].outcome == anew[-1].outcome == "done"  # type: ignore[union-attr]
    one, other = learnt(tmp_path / "no"), learnt(tmp_path / "yes")
    near(one, other, 1e-4)
    ups = [tensor for name, tensor in other.items() if name.startswith("lora_te") and "lora_up" in name]
    learning = sum(bool(tensor.any()) for tensor in ups)
    assert 0 < len(ups) < 2 * learning, "all but those of layers that nobody reads"


def config_of(folder: Path) -> dict[str, Any]:
    return {"output__directory": str(folder / "lora"), "output__precision": "fp32", "output__save_steps": 0}


def test_an_update_that_starved_half_way_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor]
):
    """The weights are one step ahead when it fails, and a checkpoint of the step before that is there."""
    real = Updater.update
    made = 0

    def update(self: Updater, step: int, finite: bool) -> Any:
        nonlocal made
        made += 1
        rates = real(self, step, finite)
        if made == 3:
            raise CUDA
        return rates

    monkeypatch.setattr(Updater, "update", update)
    events = run_all(config(tmp_path, "half", output__save_steps=1))
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3]
    assert "Out of memory in step 3" in told(events)
    near(whole, learnt(tmp_path / "half"), 1e-5)


def test_a_batch_too_large_goes_through_in_pieces_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor]
):
    real, seen = DiffusionLoss.__call__, []

    def loss(self: DiffusionLoss, batch: Batch) -> torch.Tensor:
        if len(batch.latents) > 1:
            raise CUDA
        seen.extend(batch.positions)
        return real(self, batch)

    monkeypatch.setattr(DiffusionLoss, "__call__", loss)
    events = run_all(config(tmp_path, "pieces"))
    assert "micro-batches go through in pieces of 1" in told(events)
    assert "batch_size: 1, gradient_accumulation_steps: 2" in told(events)
    assert seen == [0, 1, *range(6)], "the two that were tried before the run, then each sample once, in its order"
    near(whole, learnt(tmp_path / "pieces"), 1e-2)


def test_the_pieces_of_a_batch_are_its_rows():
    batch = Batch(
        (5, 6, 7), torch.randn(3, 4, 2, 2), ("a", "b", "c"), TextStates(torch.randn(3, 77, 8), torch.randn(3, 4)),
        torch.ones(3, 6), torch.tensor([1.0, 2.0, 3.0]),
    )  # fmt: skip
    parts = Pieces(count=2)(batch)
    assert [piece.positions for piece, _ in parts] == [(5,), (6, 7)]
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert torch.equal(torch.cat([piece.latents for piece, _ in parts]), batch.latents)
    assert torch.equal(torch.cat([piece.text.context for piece, _ in parts]), batch.text.context)
    assert torch.equal(torch.cat([piece.text.pooled for piece, _ in parts]), batch.text.pooled)
    means = [(piece.weights.mean() * share).item() for piece, share in parts]
    assert sum(means) == pytest.approx(batch.weights.mean().item())
    assert len(Pieces(count=8)(batch)) == 3, "no more than it has rows"


def test_measures_are_kept_by_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr(DiffusionLoss, "__call__", failing(DiffusionLoss.__call__, CUDA, 1, 2))
        run_all(config(tmp_path, "straight"))
    control, events = Controls(), []
    with monkeypatch.context() as patched:
        patched.setattr(DiffusionLoss, "__call__", failing(DiffusionLoss.__call__, CUDA, 1, 2))
        for event in run(config(tmp_path, "stopped"), host=Standalone(), control=control):
            events.append(event)
            if isinstance(event, Stepped) and event.step == 1:
                control.stop()
    saved, _ = newest_state(run_files(str(tmp_path / "stopped" / "lora"), None, Standalone().paths()))
    assert saved is not None
    assert saved.state.measures == ("checkpointing", "halved")
    resumed = run_all(config(tmp_path, "stopped"), resume=True)
    assert "As before the pause: activations are computed anew" in told(resumed)
    assert "As before the pause: micro-batches go through in pieces of 1" in told(resumed)
    one, other = learnt(tmp_path / "straight"), learnt(tmp_path / "stopped")
    assert all(torch.equal(one[name], other[name]) for name in one), "bit for bit, on a processor"
    with open_checkpoint(tmp_path / "stopped/lora/lora.safetensors") as file:
        assert file.metadata["ss_gradient_checkpointing"] == "True"


@pytest.mark.parametrize(("name", "what"), [("encode_images", "images"), ("encode_text", "captions")])
def test_encoding_goes_on_in_smaller_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str):
    easy = run_all(config(tmp_path, "easy", train__steps=1))
    real = getattr(DiffusionBase, name)

    def encode(self: DiffusionBase, given: Any, *more: Any) -> Any:
        if len(given) > 1:
            raise CUDA
        return real(self, given, *more)

    monkeypatch.setattr(DiffusionBase, name, encode)
    events = run_all(config(tmp_path, "encoded", train__steps=1))
    assert told(events).count(f"Out of memory while {what} were encoded: they are encoded one at a time.") == 1
    loss, again = [next(e.loss for e in found if isinstance(e, Stepped)) for found in (easy, events)]
    assert again == pytest.approx(loss, rel=1e-4)


def test_an_image_too_large_is_encoded_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from diffusers.models.autoencoders.vae import Encoder

    real, sizes = Encoder.forward, []

    def forward(self: Encoder, sample: torch.Tensor) -> torch.Tensor:
        if sample.shape[-1] > 64:
            raise APPLE
        sizes.append(tuple(sample.shape[-2:]))
        return real(self, sample)

    monkeypatch.setattr(Encoder, "forward", forward)
    monkeypatch.setattr(thrift, "TILES", (96, 64))
    events = run_all(config(tmp_path, "tiles", train__steps=1))
    assert events[-1].outcome == "done"
    assert "one at a time" in told(events)
    assert "in tiles of 96 px" in told(events)
    assert "in tiles of 64 px" in told(events)
    assert sizes
    assert max(map(max, sizes)) == 64


def test_tiles_give_nearly_the_same_latents():
    """Of a picture without structure, which is the worst case for seams."""
    vae = family_named("sd1").adopt(lent("sd1"), torch.device("cpu"), torch.float32, parts=("vae",))
    pixels = torch.rand(1, 3, 640, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = vae.encode_images(pixels)
    assert thrift.work_in_tiles(vae.parts["vae"]) == 512
    tiled = vae.encode_images(pixels)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).norm() < 0.1 * whole.norm()


def test_an_image_that_fits_in_no_way_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def starved(*_: Any) -> Any:
        raise CUDA

    monkeypatch.setattr(DiffusionBase, "encode_images", starved)
    with pytest.raises(PlainError, match="no smaller pieces are left; set a resolution below 64"):
        run_all(small_run(tmp_path))


def test_samples_that_starve_are_decoded_in_tiles_and_cost_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(samples, "draw", failing(samples.draw, CUDA, 2, 4, 5))
    events = run_all(small_run(
        tmp_path, samples__prompts=["blocks"], samples__every=1, samples__sampling_steps=1, samples__size=64,
        train__steps=2, output__save_steps=0,
    ))  # fmt: skip
    assert events[-1].outcome == "done"
    assert "No samples were drawn at step 1" not in told(events), "where tiles help"
    assert "No samples were drawn at step 2" in told(events), "where nothing does"


def test_a_checkpoint_that_starves_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_output, "write_lora", failing(image_output.write_lora, MemoryError(), 1))
    events = run_all(small_run(tmp_path, train__steps=2, output__save_steps=1))
    assert "Step 1 was not saved, the training goes on: the memory does not suffice." in told(events)
    assert events[-1].outcome == "done"


def test_images_leave_the_memory_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor]
):
    """The last measure on a processor; what is read back is what was there."""
    starve = failing(DiffusionLoss.__call__, CUDA, 2, 3, 4)
    monkeypatch.setattr(DiffusionLoss, "__call__", starve)
    events = run_all(config(tmp_path, "disk"))
    assert "encoded images are kept on disk" in told(events)
    assert list((tmp_path / "pictures").rglob("*.safetensors"))
    near(whole, learnt(tmp_path / "disk"), 1e-2)


def test_old_files_with_switches_load():
    old = {"train": {"gradient_checkpointing": True}}
    assert load(old).train.gradient_checkpointing == "yes"
    assert load(json.loads('{"train.gradient_checkpointing": false}')).train.gradient_checkpointing == "no"
    assert load({"gradient_checkpointing": "auto"}).train.gradient_checkpointing == "auto"
