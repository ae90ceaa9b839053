"""BLIP (Li et al. 2022) through transformers: sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lora_trainer.captioners.models import weights_in
from lora_trainer.captioners.pixels import CLIP_DEVIATION, CLIP_MEAN, Look, pixels
from lora_trainer.contracts import PlainError
from lora_trainer.weights.json_file import read_json
from lora_trainer.weights.read import open_checkpoint

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_BEAMS = 3  # as in the paper's captioning (configs/caption_coco.yaml of salesforce/BLIP)
_LONGEST = 50  # new tokens: a caption has some fifteen, and 75 fit into a prompt's chunk


class _Loaded(NamedTuple):
    model: Any
    tokenizer: Any
    look: Look


class Blip:
    """Implements `contracts.Captioner` for a folder as transformers' `save_pretrained` writes it."""

    makes: Literal["sentences", "tags"] = "sentences"
    batch_size = 8

    def __init__(self, name: str, folder: Path, device: torch.device) -> None:
        self.name = name
        self._folder = folder
        self._device = device
        self._loaded: _Loaded | None = None

    def caption(self, images: Sequence[Image]) -> list[str]:
        """The likeliest sentence for each image."""
        import torch

        loaded = self._loaded = self._loaded or self._load()
        seen = pixels(images, loaded.look).to(self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=self._device.type == "cuda"):
            tokens = loaded.model.generate(pixel_values=seen, num_beams=_BEAMS, max_new_tokens=_longest(loaded.model))
        return [text.strip() for text in loaded.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def close(self) -> None:
        """Forget the model."""
        self._loaded = None

    def _load(self) -> _Loaded:
        import transformers

        library: Any = transformers  # its types and what it exports change between releases
        weights = weights_in(self._folder)
        if weights is None:
            raise PlainError(f"{self._folder} has no weights of a BLIP model any more; put them back.")
        config = library.BlipConfig.from_pretrained(self._folder, local_files_only=True)
        with open_checkpoint(weights) as checkpoint:
            # Read here, not by transformers, whose oldest releases run whatever code a pickle holds.
            model, report = library.BlipForConditionalGeneration.from_pretrained(
                None, config=config, state_dict=_with_head(dict(checkpoint)), output_loading_info=True
            )
        missing = sorted(key for key in report["missing_keys"] if not _is_made(key))
        if missing:
            raise PlainError(
                f"{weights} lacks {len(missing)} tensors of a BLIP captioner, such as {missing[0]}; download it again, "
                "or name a model for captioning."
            )
        try:
            tokenizer = library.BertTokenizerFast.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:  # TypeError: transformers 4.30 without vocab.txt
            told = f"{self._folder} has no tokenizer (tokenizer.json or vocab.txt); download it again."
            raise PlainError(told) from error
        return _Loaded(model.eval().to(self._device), tokenizer, _look(self._folder, config.vision_config.image_size))


def _with_head(tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors with the output layer: where it is the input embedding again, newer releases leave it out of the
    file and older ones would begin with a random one."""
    head, words = "text_decoder.cls.predictions.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight"
    return tensors if head in tensors or words not in tensors else {**tensors, head: tensors[words]}


def _longest(model: Any) -> int:
    """New tokens of a caption: beams go on past a sentence's end, and a small model has few positions, of which the
    opening marks take two."""
    return min(_LONGEST, model.config.text_config.max_position_embeddings - 2)


def _is_made(key: str) -> bool:
    """Whether a tensor that a file lacks is one that the model makes for itself: positions counted up, or the output
    layer, which is the input embedding again."""
    return key.endswith("position_ids") or ".cls.predictions.decoder." in f".{key}"


def _look(folder: Path, size: int) -> Look:
    """How the model's own image processor is set (preprocessor_config.json)."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path) if path.is_file() else {}
    given = settings.get("size", size)
    height, width = (given.get("height", size), given.get("width", size)) if isinstance(given, dict) else (given, given)
    return Look(
        int(height), int(width), "squash", int(settings.get("resample", Look(0, 0, "squash").resample)),
        tuple(settings.get("image_mean", CLIP_MEAN)), tuple(settings.get("image_std", CLIP_DEVIATION)),
    )  # fmt: skip
