"""Whole runs with focal points, masks and regularisation images: told before, felt by the LoRA, resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.config.load import ConfigError, load
from lora_trainer.contracts import Finished, PlainError, Stepped, Told
from lora_trainer.data.focus import FOCUS
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.estimate import sentence
from lora_trainer.jobs.limits import load_allowed
from lora_trainer.jobs.plan import plan_run
from lora_trainer.jobs.run import Controls, run
from tests.builders.runs import run_all, small_run, write_pictures
from tests.unit.test_data_masks import half


def trained(folder: Path, name: str, **options: Any) -> dict[str, torch.Tensor]:
    events = run_all(small_run(folder, output__directory=str(folder / name / "lora"), **options))
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "done", events[-1]
    return load_file(folder / name / "lora" / "lora.safetensors")


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[key] - other[key]).float().norm().item() / one[key].float().norm().item() for key in one)


def class_images(folder: Path) -> str:
    write_pictures(folder / "class", 3)
    (folder / "class" / "metadata.csv").unlink()
    return str(folder / "class")


def test_what_is_set_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    small_run(tmp_path)
    pictures = tmp_path / "pictures"
    half((64, 64)).save(pictures / "0-masklabel.png")
    (pictures / FOCUS).write_text("filename,x,y\n0.png,0,0\n")
    plan = plan_run(small_run(tmp_path), Standalone())
    assert any("1 images have masks, which do not count: turn data.masked_loss on" in note for note in plan.notes)
    assert "the middle, of 1 images around their focal points" in plan.text()
    notes = plan_run(small_run(tmp_path, data__crop="none"), Standalone()).notes
    assert any(FOCUS in note and "data.crop: center" in note for note in notes)
    options: dict[str, Any] = {
        "data__masked_loss": True, "data__mask_floor": 0.1, "data__crop": "focal", "data__prior_weight": 0.5,
        "data__regularization": class_images(tmp_path), "data__class_prompt": "blocks", "train__steps": None,
    }  # fmt: skip
    plan = plan_run(small_run(tmp_path, **options, train__epochs=4), Standalone())
    told = plan.text()
    for words in (
        "masks           1 in files; black parts count 0.1", "crop            around focal points, 1 of them known",
        "regularization  3 images, each step's share half, weight 0.5", "24 (4 epochs)",
    ):  # fmt: skip
        assert words in told, told
    assert not any(FOCUS in note or "do not count" in note or "no caption" in note for note in plan.notes)
    assert sentence(plan, None).startswith("6 images, all with captions, and as many looks at 3 of the class: 24 steps")
    # 1500 looks at six images of one's own are as many steps of two, since each step also holds one of the class
    assert plan_run(small_run(tmp_path, **options), Standalone()).steps == 1500


@pytest.mark.slow
def test_a_focal_point_and_a_mask_change_what_is_learned(tmp_path: Path) -> None:
    small_run(tmp_path)
    write_pictures(tmp_path / "pictures", sides=((128, 64),))
    common: dict[str, Any] = {"data__buckets": False, "train__steps": 2, "data__crop": "focal"}
    pictures = tmp_path / "pictures"
    (pictures / FOCUS).write_text("filename,x,y\n" + "".join(f"{number}.png,0,0\n" for number in range(6)))
    left = trained(tmp_path, "left", **common)
    assert apart(left, trained(tmp_path, "again", **common)) == 0
    (pictures / FOCUS).write_text("filename,x,y\n" + "".join(f"{number}.png,1,0\n" for number in range(6)))
    assert apart(left, trained(tmp_path, "right", **common)) > 0.01
    (pictures / FOCUS).unlink()  # the middle, of which the masks below leave one half
    whole: dict[str, Any] = {"data__buckets": False, "train__steps": 2}
    plain = trained(tmp_path, "plain", **whole)
    for number in range(6):
        Image.new("L", (9, 9), 255).save(pictures / f"{number}-masklabel.png")
    white = trained(tmp_path, "white", data__masked_loss=True, **whole)
    assert apart(plain, white) < 0.01, "a mask that shows everything changes nothing but rounding"
    assert apart(plain, trained(tmp_path, "off", **whole)) == 0, "nor does one that is not asked for"
    for number in range(6):
        half((128, 64)).save(pictures / f"{number}-masklabel.png")
    assert apart(plain, trained(tmp_path, "half", data__masked_loss=True, **whole)) > 0.01
    events = run_all(small_run(tmp_path, data__masked_loss=True, train__steps=1, data__crop="none"))
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "done"


def test_a_run_with_class_images_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "data__regularization": class_images(tmp_path), "data__class_prompt": "blocks", "data__prior_weight": 0.5,
        "data__flip": True, "data__trigger": "sks",
    }  # fmt: skip
    small_run(tmp_path)
    straight = trained(tmp_path, "straight", **options)
    config, control = small_run(tmp_path, **options), Controls()
    for event in run(config, host=Standalone(), control=control):
        if isinstance(event, Stepped) and event.step == 3:
            control.stop()
    events = run_all(config, resume=True)
    assert not [event.text for event in events if isinstance(event, Told) and "changed" in event.text]
    one, other = tmp_path / "straight/lora/lora.safetensors", tmp_path / "out/lora/lora.safetensors"
    assert one.read_bytes() == other.read_bytes()
    with safe_open(one, "pt") as file:
        notes = file.metadata()
    assert (notes["ss_num_reg_images"], notes["ss_prior_loss_weight"]) == ("3", "0.5")
    assert str(tmp_path) not in str(notes)
    assert apart(straight, trained(tmp_path, "heavier", **options | {"data__prior_weight": 2.0})) > 0.01


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data__mask_floor": 0.5}, "data.mask_floor is 0.5, but counts only where data.masked_loss is true"),
        ({"data__prior_weight": 0.5}, "data.prior_weight is 0.5, .* or set data.regularization"),
        ({"data__class_prompt": "a cat"}, "data.class_prompt is 'a cat', .* or set data.regularization"),
        ({"data__masked_loss": True}, "data.masked_loss is on, but no image of .* has a mask"),
        ({"data__regularization": "{}/pictures/class"}, "lie in one another"),
        ({"data__regularization": "{}"}, "lie in one another"),
        ({"data__regularization": "{}/nowhere"}, "nowhere does not exist"),
        ({"data__regularization": "{}/class"}, "3 of the 3 regularisation images .* have no caption"),
    ],
)
def test_what_cannot_apply_is_refused_in_words(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    small_run(tmp_path)
    class_images(tmp_path)
    write_pictures(tmp_path / "pictures" / "class", 1)
    given = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(PlainError, match=told):
        plan_run(small_run(tmp_path, **given), Standalone())


def test_names_of_other_trainers_load_or_are_shown_the_way() -> None:
    config = load({"masked_loss": True, "reg_data_dir": "cats", "prior_loss_weight": 0.5, "class_prompt": "a cat"})
    assert (config.data.masked_loss, config.data.regularization, config.data.prior_weight) == (True, "cats", 0.5)
    with pytest.raises(ConfigError, match=r"unmasked_weight.*data\.mask_floor"):
        load({"unmasked_weight": 0.1})


def test_a_request_may_not_name_class_images_elsewhere(tmp_path: Path) -> None:
    class Fenced(Standalone):
        def paths(self):
            return super().paths().__class__(loras=None, allowed=(tmp_path / "in",))

    with pytest.raises(ConfigError, match=r"data\.regularization"):
        load_allowed({"data.folder": str(tmp_path / "in"), "reg_data_dir": str(tmp_path / "out")}, Fenced())
