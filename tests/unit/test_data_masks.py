"""Masks: found beside their images, cut and mirrored like these, and never silently without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.config.options import DataConfig
from lora_trainer.contracts import PlainError, Told
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.mask_files import MaskFiles
from lora_trainer.data.scan import scan
from lora_trainer.train.objective import mean_error
from tests.builders.pictures import picture_folder, ramp
from tests.unit.test_data_crops import encode_images


def half(size: tuple[int, int], right: bool = False) -> Image.Image:
    """A mask that shows the left (or right) half."""
    mask = Image.new("L", size)
    middle = size[0] // 2
    mask.paste(255, (middle, 0, *size) if right else (0, 0, middle, size[1]))
    return mask


def prepared(folder: Path, **options: Any) -> tuple[DataSet, list[str]]:
    options = {"batch_size": 1, "caption_dropout": 0.0, "masked_loss": True} | options
    data = DataSet(scan(folder), DataConfig(**options), resolution=128, seed=4)
    told = [event.text for event in data.prepare(encode_images) if isinstance(event, Told)]
    return data, told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "set", [(128, 128)])


def test_masks_are_found_by_name_and_are_no_images() -> None:
    files = [
        "a.jpg", "a-masklabel.png", "mask/a.png", "B.webp", "Mask/b.PNG", "sub/c.png", "sub/mask/c.jpg",
        "d-masklabel.png", "mask/e.png", "mask/f-masklabel.png", "c.png",
    ]  # fmt: skip
    masks = MaskFiles(files)
    assert {image: masks.of(image) for image in ("a.jpg", "B.webp", "sub/c.png", "c.png")} == {
        "a.jpg": "a-masklabel.png", "B.webp": "Mask/b.PNG", "sub/c.png": "sub/mask/c.jpg", "c.png": None,
    }  # fmt: skip
    assert set(files) - masks.names == {"a.jpg", "B.webp", "sub/c.png", "c.png", "d-masklabel.png", "mask/e.png",
                                        "mask/f-masklabel.png"}  # fmt: skip


@pytest.mark.parametrize("place", ["0-masklabel.png", "mask/0.png", "alpha"])
def test_every_way_to_give_a_mask_gives_the_same_weights(folder: Path, place: str) -> None:
    mask = half((128, 128))
    if place == "alpha":
        picture = Image.open(folder / "0.png")
        picture.putalpha(mask)
        picture.save(folder / "0.png")
    else:
        (folder / place).parent.mkdir(exist_ok=True)
        mask.save(folder / place)
    data, told = prepared(folder)
    found = data(0).mask
    assert found is not None
    assert (found.shape, found.dtype) == ((1, 1, 16, 16), torch.float32)
    assert found[0, 0].mean(dim=0).tolist() == [1] * 8 + [0] * 8
    assert (told, len(data.items)) == ([], 1)
    assert str(data.masks) == ("1 in alpha channels" if place == "alpha" else "1 in files")


def test_a_mask_is_cut_and_mirrored_as_its_image(tmp_path: Path) -> None:
    # The picture itself is the mask in its red channel: whatever is done to one has to be done to the other.
    for name, size in (("a", (512, 200)), ("b", (130, 300))):
        blocks = np.random.default_rng(5).integers(0, 2, (size[1] // 20 + 1, size[0] // 20 + 1), dtype=np.uint8)
        mask = Image.fromarray(blocks * 255).resize(size, Image.Resampling.BICUBIC)
        Image.merge("RGB", [mask, mask, mask]).save(tmp_path / f"{name}.png")
        mask.save(tmp_path / f"{name}-masklabel.png")
    (tmp_path / "lora_trainer_focus.csv").write_text("filename,x,y\na.png,0.1,0.5\nb.png,0.5,0.8\n")
    for options in ({"buckets": False}, {}, {"crop": "focal", "buckets": False}, {"crop": "none"}):
        data, _ = prepared(tmp_path, flip=True, **options)
        for index in range(8):
            batch = data(index)
            assert batch.mask is not None
            learned = batch.mask[0, 0]
            inside = learned > 0
            grey = (batch.latents[0, 0] + 1) / 2
            # Lanczos sharpens and a mean does not, so cells agree as nearly as two ways of scaling do
            assert (grey - learned)[inside].abs().mean() < 0.03, options
            assert np.corrcoef(grey[inside], learned[inside])[0, 1] > 0.99


def test_a_mask_of_another_size_is_laid_over_the_whole_image(folder: Path) -> None:
    half((640, 640), right=True).save(folder / "0-masklabel.png")
    data, told = prepared(folder)
    assert data(0).mask[0, 0].mean(dim=0).tolist() == [0] * 8 + [1] * 8  # type: ignore[index]
    assert told == []
    half((32, 20)).save(folder / "0-masklabel.png")
    data, told = prepared(folder)
    assert data(0).mask[0, 0].mean(dim=0).tolist() == [1] * 8 + [0] * 8  # type: ignore[index]
    (sentence,) = told
    assert "32 x 20 px and the image 128 x 128, another shape" in sentence


def test_a_mask_of_an_image_turned_by_exif_is_drawn_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp(64, 128).save(tmp_path / "0.png", exif=exif)  # upright it is 128 x 64
    half((128, 64)).save(tmp_path / "0-masklabel.png")
    data, told = prepared(tmp_path)
    assert data(0).mask[0, 0].mean(dim=0).tolist() == [1] * 8 + [0] * 8  # type: ignore[index]
    assert told == []


def test_the_floor_is_what_is_left_outside_and_greys_count_in_part(folder: Path) -> None:
    mask = half((128, 128))
    mask.paste(51, (0, 0, 128, 8))  # a fifth
    mask.save(folder / "0-masklabel.png")
    found = prepared(folder)[0](0).mask
    assert found is not None
    assert found[0, 0, 0].tolist() == pytest.approx([0.2] * 16)
    found = prepared(folder, mask_floor=0.3)[0](0).mask
    assert found is not None
    assert found[0, 0, 0].tolist() == pytest.approx([0.3] * 16)
    assert found[0, 0, 1].tolist() == pytest.approx([1.0] * 8 + [0.3] * 8)
    Image.new("RGBA", (128, 128), (255, 255, 255, 0)).save(folder / "0-masklabel.png")  # a layer with nothing on it
    picture_folder(folder, [(128, 128)] * 2)
    assert "black in all" in prepared(folder, mask_floor=0.3)[1][0], "transparent parts of a mask are black"


def test_padding_stays_out_whatever_the_floor(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path, [(256, 128)])
    half((256, 128)).save(folder / "0-masklabel.png")
    data, _ = prepared(folder, crop="none", buckets=False, mask_floor=0.5)
    found = data(0).mask
    assert found is not None
    assert found[0, 0, :, 0].tolist() == [0] * 4 + [1] * 8 + [0] * 4
    assert found[0, 0, :, -1].tolist() == [0] * 4 + [0.5] * 8 + [0] * 4


def test_an_image_without_a_mask_counts_everywhere(folder: Path) -> None:
    picture_folder(folder, [(128, 128)] * 2)
    half((128, 128)).save(folder / "0-masklabel.png")
    data, _ = prepared(folder, batch_size=2)
    found = data(0).mask
    assert found is not None
    assert sorted(found.mean(dim=(1, 2, 3)).tolist()) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "0-masklabel.png is damaged or cut short"),
        (lambda path: path.write_bytes(b"no image"), "0-masklabel.png is not an image"),
        (lambda path: Image.new("L", (9, 9)).save(path), "is black in all that is trained on"),
    ],
)
def test_an_image_whose_mask_cannot_be_used_is_left_out_and_told(folder: Path, spoil: Any, told: str) -> None:
    picture_folder(folder, [(128, 128)] * 3)
    half((128, 128)).save(folder / "0-masklabel.png")
    spoil(folder / "0-masklabel.png")
    data, sentences = prepared(folder)
    assert any(told in sentence and "0.png" in sentence for sentence in sentences)
    assert sentences[-1].startswith("1 of 3 images are without anything to learn")
    assert [item.name for item in data.items] == ["1.png", "2.png"]
    (folder / "1.png").unlink()
    (folder / "2.png").unlink()
    with pytest.raises(PlainError, match="Not one image of"):
        prepared(folder)


def test_masks_that_are_not_there_are_a_fault(folder: Path) -> None:
    with pytest.raises(PlainError, match=r"no image of .* has a mask: put one beside an image X as X-masklabel\.png"):
        prepared(folder)


def test_without_masks_nothing_is_masked(folder: Path) -> None:
    half((128, 128)).save(folder / "0-masklabel.png")
    assert prepared(folder, masked_loss=False)[0](0).mask is None


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_the_masked_loss_is_a_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(2)
    error, mask = torch.rand(3, 4, 6, 5, generator=generator), torch.rand(3, 1, 6, 5, generator=generator)
    mask[1, 0, :, :3] = 0
    wanted = [
        np.average(error[row].numpy(), weights=np.broadcast_to(mask[row].numpy(), (4, 6, 5))).item() for row in range(3)
    ]
    assert mean_error(error, mask).tolist() == pytest.approx(wanted, rel=1e-5)
    assert mean_error(error, torch.ones(3, 1, 6, 5)).tolist() == pytest.approx(mean_error(error, None).tolist())
    assert torch.equal(mean_error(error, None), error.mean(dim=(1, 2, 3)))
    changed = error.clone()
    changed[1, :, :, :3] += 7
    assert mean_error(changed, mask)[1] == mean_error(error, mask)[1], "what is masked has no say"
