"""The demonstration as a number: after a short training the embedded base draws in the sample set's style."""

from dataclasses import replace

import pytest
from PIL import Image

from lora_trainer.contracts import Finished
from lora_trainer.demo.measure import style_statistic
from lora_trainer.demo.show import ASSETS, before_after, demo_config, pictures
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.run import Controls, run

PROMPTS = ("a red house at the sea at night", "a blue car in a field by day", "a green tree in a desert at sunset")


@pytest.mark.slow
def test_a_short_training_moves_the_pictures_from_the_bases_style_to_the_sample_sets(tmp_path):
    config = demo_config(tmp_path)
    config = replace(config, train=replace(config.train, epochs=None, steps=150))
    finished = [e for e in run(config, host=Standalone(), control=Controls()) if isinstance(e, Finished)]
    assert finished[0].outcome == "done"
    assert finished[0].path
    base, half, most = (style_statistic(row) for row in pictures(finished[0].path, PROMPTS, (0.0, 0.4, 0.8)))
    neon = style_statistic([Image.open(path) for path in sorted((ASSETS / "neon").glob("*.png"))])
    assert base < 0.1
    assert base <= half < most
    assert most - base > 0.6 * (neon - base), (base, half, most, neon)
    sheet = before_after(finished[0].path, PROMPTS, (0.0, 0.8))
    assert sheet.height < before_after(finished[0].path, PROMPTS, (0.0, 0.4, 0.8)).height
