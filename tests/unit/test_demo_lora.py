"""The demonstration as a number: after it the embedded base draws in the sample set's style."""

import pytest
from PIL import Image

from lora_trainer.contracts import Finished
from lora_trainer.demo.measure import style_statistic
from lora_trainer.demo.show import ASSETS, PROMPTS, WEIGHTS, demonstrate, pictures
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.run import Controls


@pytest.mark.slow
def test_the_demo_moves_the_pictures_from_the_bases_style_to_the_sample_sets(tmp_path):
    *_, end = demonstrate(tmp_path / "demo", host=Standalone(), control=Controls())
    assert isinstance(end, Finished)
    assert end.outcome == "done", end.text
    with Image.open(tmp_path / "demo" / "before-after.png") as table:
        assert table.width > table.height > 3 * 128
    base, half, most = (style_statistic(row) for row in pictures(end.path, PROMPTS, WEIGHTS))
    neon = style_statistic([Image.open(path) for path in sorted((ASSETS / "neon").glob("*.png"))])
    # Measured when the base was made: 0.00, 0.16, 0.50, and 0.72 for the sample set.
    assert base < 0.05
    assert base <= half < most
    assert most > 0.4 * neon, (base, half, most, neon)
