"""Every option of drawing class images, once; flags, YAML and the body of POST /class_images derive from it."""

from __future__ import annotations

from dataclasses import dataclass

from lora_trainer.config.options import option


@dataclass(frozen=True, kw_only=True)
class ClassImagesConfig:
    """Pictures of a class, drawn by the base model itself, for `data.regularization`."""

    prompt: str = option(
        "", "What they show, such as 'a photo of a cat'; also their caption.", elsewhere=("class_prompt",)
    )
    folder: str = option(
        "", "Where they go; pictures that are there already count.", elsewhere=("class_data_dir", "reg_data_dir")
    )
    count: int = option(
        100, "How many are to be there in the end.", unit="images", low=1, high=100_000,
        elsewhere=("num_class_images",),
    )  # fmt: skip
    base: str = option(
        "",
        "Base model to draw with: the one that is trained on; empty, inside a WebUI, is the checkpoint it has loaded.",
        alias="base_model",
    )
    negative: str = option("", "Negative prompt.")
    size: int | None = option(
        None, "Side of the pictures, a multiple of 8; empty takes the base model's own.", unit="px", low=64, high=4096
    )
    sampling_steps: int = option(20, "Denoising steps of a picture.", unit="steps", low=1, high=200)
    guidance: float = option(7.0, "Classifier-free guidance.", low=0.0, high=50.0)
    seed: int = option(1, "Seed of the first picture; each next one adds one.", low=0, high=2**31 - 1)
