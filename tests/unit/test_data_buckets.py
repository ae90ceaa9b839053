"""Sizes that images are trained at: nothing is enlarged unasked, and little is cut away."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.contracts import PlainError
from lora_trainer.data.buckets import Buckets
from tests.builders.pictures import ramp

sides = st.integers(1, 6000)
resolutions = st.sampled_from([128, 256, 512, 768, 1000, 1024])
steps = st.sampled_from([8, 32, 64])


@given(sides, sides, resolutions, steps, st.booleans(), st.booleans())
def test_what_holds_for_every_image(width, height, resolution, step, keep_shape, upscale) -> None:
    crop = Buckets(resolution, step, keep_shape, upscale).fit(width, height)
    assert crop.width % step == crop.height % step == 0
    assert step <= min(crop.size)
    assert crop.width * crop.height <= resolution**2
    assert max(crop.size) <= 2 * resolution
    spare = (crop.resized[0] - crop.width, crop.resized[1] - crop.height)
    assert (crop.left, crop.top) == (spare[0] // 2, spare[1] // 2)
    assert min(spare) >= 0
    scale = max(crop.width / width, crop.height / height)  # covers the bucket, and touches it on one side
    assert min(spare) == 0
    assert abs(crop.resized[0] - width * scale) <= 0.5 + 1e-6
    assert abs(crop.resized[1] - height * scale) <= 0.5 + 1e-6
    if not upscale and min(width, height) >= step:
        assert crop.resized[0] <= width
        assert crop.resized[1] <= height


def test_the_bucket_has_the_nearest_shape() -> None:
    buckets = Buckets(512, 64)
    for (width, height), bucket in {
        (2000, 2000): (512, 512),
        (3000, 2000): (640, 384),  # 1.5 lies nearer to 1.67 than to 1.29, by ratio
        (2000, 3000): (384, 640),
        (1920, 1080): (640, 384),
        (1080, 1920): (384, 640),
        (9000, 1500): (1024, 256),
    }.items():
        assert buckets.fit(width, height).size == bucket
        ratio = math.log(width / height)
        assert min(buckets.shapes, key=lambda s: abs(math.log(s[0] / s[1]) - ratio)) == bucket


def test_sdxl_sizes_are_among_the_shapes() -> None:
    # training sizes listed for SDXL in arXiv 2307.01952, appendix I (height, width there)
    listed = {(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768), (768, 1344), (1536, 640)}
    assert listed <= set(Buckets(1024, 64).shapes)


def test_small_images_get_a_bucket_of_their_own() -> None:
    buckets = Buckets(512, 64)
    assert buckets.fit(300, 300).size == (256, 256)
    crop = buckets.fit(300, 200)
    assert (crop.size, crop.resized, crop.left, crop.top) == ((256, 192), (288, 192), 16, 0)
    assert Buckets(512, 64, upscale=True).fit(300, 300).size == (512, 512)
    tiny = buckets.fit(40, 100)
    assert (tiny.size, tiny.resized) == ((64, 64), (64, 160))
    assert buckets.enlarges(40, 100)
    assert not buckets.enlarges(64, 100)


def test_squares() -> None:
    squares = Buckets(512, 64, keep_shape=False)
    crop = squares.fit(1024, 768)
    assert (crop.size, crop.resized, crop.left, crop.top) == ((512, 512), (683, 512), 85, 0)
    assert squares.fit(300, 400).size == (256, 256)


def test_a_step_above_the_resolution_is_a_fault() -> None:
    with pytest.raises(PlainError, match="bucket_step 256 is larger than the resolution 128"):
        Buckets(128, 256).fit(500, 500)


def test_the_middle_is_kept_without_distortion() -> None:
    image = ramp(400, 200)
    crop = Buckets(128, 64, keep_shape=False).fit(400, 200)
    assert (crop.resized, crop.left, crop.top) == ((256, 128), 64, 0)
    cut = np.asarray(crop.apply(image)).astype(float)
    assert cut.shape == (128, 128, 3)
    # red runs linearly over the width from 20 to 230: its middle half runs from a quarter to three quarters
    assert cut[64, 0, 0] == pytest.approx(20 + 210 / 4, abs=2)
    assert cut[64, -1, 0] == pytest.approx(20 + 210 * 3 / 4, abs=2)
    assert cut[0, 64, 1] == pytest.approx(30, abs=2)
    assert cut[-1, 64, 1] == pytest.approx(240, abs=2)


def test_size_conditioning_of_a_crop_and_its_mirror_image() -> None:
    crop = Buckets(512, 64).fit(1024, 640)
    assert (crop.resized, crop.size) == ((640, 400), (640, 384))
    assert crop.sizes(1024, 640) == (640, 1024, 8, 0, 384, 640)
    odd = Buckets(512, 64, keep_shape=False).fit(1025, 768)
    assert odd.resized == (683, 512)
    assert odd.sizes(1025, 768) == (768, 1025, 0, 85, 512, 512)
    assert odd.sizes(1025, 768, mirrored=True) == (768, 1025, 0, 86, 512, 512)
