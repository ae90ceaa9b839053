"""Every option of captioning, once; flags, YAML, schema and the table in docs/captions.md derive from it.

A default of None means "resolved later from the model, the host or the folder" and is told there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lora_trainer.config.options import option


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """How the images of a folder get their captions."""

    input: str = option("", "Folder with the images; sub-folders count too.", elsewhere=("train_data_dir", "image_dir"))
    output: str | None = option(
        None,
        "Table to write; empty writes metadata.csv into the folder, or files beside the images where the format "
        "is txt or caption.",
        elsewhere=("metadata_path",),
    )
    format: Literal["csv", "txt", "caption"] | None = option(
        None,
        "Where captions go: a table with the columns filename,prompt, or a text file beside each image with "
        "this ending; empty writes the table.",
        elsewhere=("caption_extension",),
    )
    model: str = option(
        "blip-base",
        "Who describes: a name from docs/captions.md, or the folder or file of a model of these kinds.",
        elsewhere=("model_id", "repo_id"),
    )
    existing: Literal["skip", "overwrite", "append", "prepend"] = option(
        "skip",
        "What becomes of captions that are there: the image is skipped, the caption replaced, or the new one "
        "put behind or before it.",
        elsewhere=("append_tags",),
    )
    trigger: str = option(
        "",
        "Word put in front of every caption that is written, to call the LoRA by; not needed where the training "
        "puts it there.",
    )
    prefix: str = option("", "Text put before what the model says.", elsewhere=("caption_prefix",))
    suffix: str = option("", "Text put behind what the model says.", elsewhere=("caption_suffix", "postfix"))
    blacklist: tuple[str, ...] = option(
        (), "Tags that are left out; in sentences these words are.", elsewhere=("undesired_tags",)
    )
    threshold: float | None = option(
        None,
        "Least score of a tag; empty takes the model's own: 0.35 for wd14, 0.02 for clip-tags, the WebUI's "
        "setting for deepbooru.",
        low=0.0,
        high=1.0,
        elsewhere=("general_threshold", "thresh"),
    )
    character_threshold: float = option(
        0.85,
        "Least score of a character's name, for wd14: a wrong name spoils more than a missing one.",
        low=0.0,
        high=1.0,
        advanced=True,
    )
    max_tags: int | None = option(
        None,
        "Most tags in a caption; empty takes the model's own: 10 for clip-tags, else as many as there are.",
        unit="tags",
        low=1,
        high=1000,
    )
    tags: tuple[str, ...] = option(
        (),
        "What clip-tags chooses from: the tags themselves, or a text file with one a line.",
    )
    underscores_to_spaces: bool = option(
        True, "Write 'long hair' for the tag 'long_hair'; faces such as ^_^ stay.", elsewhere=("remove_underscore",)
    )
    escape_parentheses: bool = option(
        False,
        "Write \\( and \\) in tags, for captions to be pasted into a WebUI's prompt, where bare ones mean "
        "emphasis; a training reads captions as they stand.",
        advanced=True,
    )
    batch_size: int | None = option(
        None, "Images described at once; empty takes what suits the model.", unit="images", low=1, high=256
    )
    device: str | None = option(
        None, "Where to compute, such as cpu, cuda or cuda:1; empty takes the GPU if there is one.", advanced=True
    )
    models: str = option(
        "models/captioners",
        "Folder in which captioning models lie, each in a folder of its own; what other programs "
        "have fetched from the Hugging Face hub is found too.",
        advanced=True,
    )
    download: bool = option(
        False, "Fetch a model that is not there, from the Hugging Face hub; a broken download is continued."
    )
