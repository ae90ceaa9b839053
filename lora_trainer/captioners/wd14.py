"""Taggers of the WD14 kind (SmilingWolf's) through onnxruntime: booru tags."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from lora_trainer.captioners.models import ONNX, ONNX_TAGS
from lora_trainer.contracts import PlainError

if TYPE_CHECKING:
    import torch

THRESHOLD = 0.35  # what the models' author shows them with
_GENERAL, _CHARACTER = "0", "4"  # categories in selected_tags.csv, as Danbooru numbers them; 9, ratings, is left out


class Tag(NamedTuple):
    """One output of the model."""

    name: str
    category: str


class _Loaded(NamedTuple):
    session: Any
    input: str
    side: int  # pixels
    fixed_batch: int | None
    tags: list[Tag]


class Wd14:
    """Implements `contracts.Captioner` for a folder with model.onnx and selected_tags.csv."""

    makes: Literal["sentences", "tags"] = "tags"
    batch_size = 8

    def __init__(
        self, name: str, folder: Path, device: torch.device, *, threshold: float | None, character_threshold: float
    ) -> None:
        self.name = name
        self._folder = folder
        self._device = device
        self._least = {_GENERAL: THRESHOLD if threshold is None else threshold, _CHARACTER: character_threshold}
        self._loaded: _Loaded | None = None

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """General tags and characters above their thresholds, the surest first."""
        loaded = self._loaded = self._loaded or self._load()
        seen = np.stack([_seen(image, loaded.side) for image in images])
        step = loaded.fixed_batch or len(images)
        parts = [seen[start : start + step] for start in range(0, len(seen), step)]
        scores = np.concatenate([_scores(loaded, part) for part in parts])
        if scores.shape != (len(images), len(loaded.tags)):
            raise PlainError(
                f"{self._folder / ONNX} gives {scores.shape[-1]} scores, and {ONNX_TAGS} names {len(loaded.tags)} "
                "tags; both must be of the same model."
            )
        return [self._chosen(row, loaded.tags) for row in scores]

    def close(self) -> None:
        """Forget the model."""
        self._loaded = None

    def _chosen(self, scores: np.ndarray, tags: Sequence[Tag]) -> str:
        order = np.argsort(-scores, kind="stable")
        return ", ".join(
            tags[index].name for index in order if scores[index] >= self._least.get(tags[index].category, np.inf)
        )

    def _load(self) -> _Loaded:
        try:
            import onnxruntime  # pyright: ignore[reportMissingImports] - optional
        except ImportError as error:
            raise PlainError(
                "This captioner needs the package onnxruntime (or onnxruntime-gpu), which is not installed: pip "
                "install onnxruntime."
            ) from error
        wanted = ["CUDAExecutionProvider"] if self._device.type == "cuda" else []
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        path = self._folder / ONNX
        library: Any = onnxruntime
        faults = library.capi.onnxruntime_pybind11_state  # its errors have no class in common
        try:
            session = onnxruntime.InferenceSession(str(path), providers=[*providers, "CPUExecutionProvider"])
        except (faults.Fail, faults.InvalidGraph, faults.InvalidProtobuf, faults.NotImplemented) as error:
            told = " ".join(str(error).split())[:200]
            raise PlainError(f"{path} cannot be loaded ({told}); download or copy it again.") from error
        first = session.get_inputs()[0]
        batch, height, width, channels = _four(first.shape, path)
        if height != width or channels != 3:
            raise PlainError(f"{path} wants images of the shape {first.shape}, a WD14 tagger squares of 3 channels.")
        return _Loaded(session, first.name, height, batch, read_tags(self._folder / ONNX_TAGS))


def _four(shape: Sequence[Any], path: Path) -> tuple[int | None, int, int, int]:
    if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise PlainError(f"{path} wants an input of the shape {list(shape)}, so it is no WD14 tagger.")
    batch = shape[0]
    return (batch if isinstance(batch, int) and batch > 0 else None), shape[1], shape[2], shape[3]


def read_tags(path: Path) -> list[Tag]:
    """The tags in the order of the model's outputs. Raises PlainError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [Tag(row["name"], row["category"].strip()) for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise PlainError(f"{path} cannot be read as a table with the columns name,category ({error}).") from error


def _seen(image: Image.Image, side: int) -> np.ndarray:
    """The whole image in a white square, (side, side, 3) float32 of 0..255, channels B G R as OpenCV reads them."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(image.convert("RGB"), ((longest - image.width) // 2, (longest - image.height) // 2))
    square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[:, :, ::-1])


def _scores(loaded: _Loaded, seen: np.ndarray) -> np.ndarray:
    """(B, tags) of 0..1; a batch of a fixed size is filled up with copies of its last image."""
    missing = (loaded.fixed_batch or len(seen)) - len(seen)
    filled = np.concatenate([seen, np.repeat(seen[-1:], missing, axis=0)]) if missing else seen
    return loaded.session.run(None, {loaded.input: filled})[0][: len(seen)]
