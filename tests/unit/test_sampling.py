"""Sample pictures: a function of prompt, seed and weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_trainer.contracts import PlainError
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.families.sampling import draw, make_scheduler, to_picture
from tests.builders.slim import Kind, write_slim

CASES: list[tuple[Kind, bool]] = [("sd1", False), ("sdxl", True)]


@pytest.fixture(scope="module", params=CASES, ids=["sd1", "sdxl, v from pure noise"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    kind, v_pred = request.param
    path: Path = write_slim(tmp_path_factory.mktemp("base") / "slim.safetensors", kind, v_pred=v_pred)
    lent = lend_file(path)
    return family_named(kind).adopt(lent, torch.device("cpu"), torch.float32)


def pixels(picture: Any) -> Any:
    return np.asarray(picture).astype(int)


def test_a_picture_depends_on_its_own_seed_and_prompt_alone(base: Any):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = draw(base, ["a cat", "a dog"], "ugly", size=64, steps=2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.size, first.mode) == ((64, 64), "RGB")
    (again,) = draw(base, ["a dog"], "ugly", size=64, steps=2, seed=8)
    assert np.array_equal(pixels(second), pixels(again))
    for other in (
        draw(base, ["a cat"], "ugly", size=64, steps=2, seed=9),
        draw(base, ["a cow"], "ugly", size=64, steps=2, seed=7),
        draw(base, ["a cat"], "nice", size=64, steps=2, seed=7),
        draw(base, ["a cat"], "ugly", size=64, steps=2, seed=7, guidance=1),
    ):
        assert not np.array_equal(pixels(other[0]), pixels(first))


def test_without_guidance_the_negative_prompt_is_without_effect(base: Any):
    one, other = (draw(base, ["x"], negative, size=64, steps=1, guidance=1)[0] for negative in ("a", "b"))
    assert np.array_equal(pixels(one), pixels(other))


@pytest.mark.parity
def test_the_last_step_gives_back_the_image_of_a_perfect_model(base: Any):
    """A model that knows the image is followed to it: the loop, the schedule and the prediction type agree."""
    image = torch.linspace(-1, 1, 4 * 64).reshape(1, 4, 8, 8)

    class Perfect:
        device = torch.device("cpu")
        facts = base.facts
        decoded: Any = None

        def encode_text(self, captions: Any, clip_skip: int = 1) -> Any:
            return base.encode_text(captions, clip_skip)

        def predict(self, noisy: Any, timesteps: Any, text: Any, sizes: Any) -> Any:
            alpha = base.alphas_cumprod[timesteps.long()].double().reshape(-1, 1, 1, 1)
            noise = (noisy.double() - alpha.sqrt() * image) / (1 - alpha).sqrt()
            answer = alpha.sqrt() * noise - (1 - alpha).sqrt() * image
            return (answer if self.facts.prediction == "v_prediction" else noise).float()

        def decode_latents(self, latents: Any) -> Any:
            self.decoded = latents
            return torch.zeros(1, 3, 8, 8)

    perfect = Perfect()
    draw(perfect, ["x"], size=64, steps=5)  # type: ignore[arg-type]
    torch.testing.assert_close(perfect.decoded, image, atol=2e-2, rtol=0)


def test_the_scheduler_fits_the_schedule(base: Any):
    scheduler = make_scheduler(base)
    expected = "DDIMScheduler" if base.facts.zero_terminal_snr else "DPMSolverMultistepScheduler"
    assert type(scheduler).__name__ == expected
    assert scheduler.config.prediction_type == base.facts.prediction
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == 999  # from pure noise on
    # DPM-Solver keeps the last value off zero; DDIM has the very schedule of the training.
    torch.testing.assert_close(scheduler.alphas_cumprod, base.alphas_cumprod, atol=2e-6, rtol=0)


def test_odd_sizes_are_refused(base: Any):
    with pytest.raises(PlainError, match="Samples of 100 pixels were asked for, but sides are multiples of 8"):
        draw(base, ["x"], size=100)


def test_pixels_are_rounded_to_their_nearest_value():
    values = torch.tensor([-1.2, -1.0, 0.0, 0.5, 1.0, 3.0]).reshape(1, 1, 6).expand(3, 1, 6)
    assert pixels(to_picture(values))[0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]
