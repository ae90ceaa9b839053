"""Where a captioning model lies: a folder that is named, the folder for models, or the Hugging Face hub's cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lora_trainer.captioners.models import KNOWN, ONNX, OPEN_CLIP_CONFIG, WEIGHTS, Kind, Known, kind_of, weights_in
from lora_trainer.contracts import PlainError
from lora_trainer.weights.hub import cached_folder

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class Place(NamedTuple):
    """A model that is there."""

    kind: Kind
    folder: Path
    architecture: str  # open_clip's name of it, where known


def place_of(model: str, models: Path) -> Place:
    """Where the model of that name, path or hub repository lies.

    Raises PlainError that says what is missing, how large it is and where to put it.
    """
    path = Path(model).expanduser()
    if model not in KNOWN and path.exists():
        return _given(path)
    known = KNOWN.get(model) or next((known for known in KNOWN.values() if known.repository == model), None)
    if known is None and not _REPOSITORY.fullmatch(model):
        raise PlainError(
            f"There is no captioner {model!r}, nor a file or folder of this name; choose one of {', '.join(KNOWN)}, "
            "or name the folder of a BLIP, open_clip or WD14 model."
        )
    repository = known.repository if known else model
    found = _found(model, repository, known, models)
    if found:
        return found
    if known is None and any(_cached(repository)):
        raise PlainError(f"{repository} is no model of a kind that is known here: BLIP, open_clip or WD14.")
    raise PlainError(_missing(model, repository, known, models))


def to_fetch(model: str, models: Path) -> str:
    """The repository of the hub that must be fetched before `place_of` finds that captioner; empty where none must."""
    known = KNOWN.get(model)
    repository = known.repository if known else model
    if not _REPOSITORY.fullmatch(repository) or (known is None and Path(model).expanduser().exists()):
        return ""
    return "" if _found(model, repository, known, models) else repository


def found_place(model: str, models: Path) -> Place | None:
    """Where the model of a known name lies, if it is on this machine; one that is damaged is not."""
    known = KNOWN[model]
    try:
        return _found(model, known.repository, known, models)
    except PlainError:
        return None


def _found(model: str, repository: str, known: Known | None, models: Path) -> Place | None:
    for folder in _folders(model, repository, models):
        kind = _kind(folder, known)
        if kind:
            return Place(kind, folder, known.architecture if known else "")
    return None


def _given(path: Path) -> Place:
    folder = path if path.is_dir() else path.parent
    kind = kind_of(folder)
    if kind is None or (path.is_file() and path.name not in (*WEIGHTS, ONNX)):
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) if path.is_dir() else path.name
        raise PlainError(
            f"{path} is no captioning model that is known here (found: {found or 'nothing'}): a BLIP folder has "
            "config.json, tokenizer and model.safetensors or pytorch_model.bin; an open_clip folder "
            "open_clip_config.json and weights; a WD14 folder model.onnx and selected_tags.csv."
        )
    return Place(kind, folder, "")


def _folders(model: str, repository: str, models: Path) -> Iterator[Path]:
    yield models / model
    yield models / repository.rpartition("/")[2]
    yield from _cached(repository)


def _kind(folder: Path, known: Known | None) -> Kind | None:
    """The kind of what lies there; weights alone will do for a model whose architecture is known."""
    kind = kind_of(folder)
    if kind is None and known and known.architecture and weights_in(folder):
        return known.kind
    return kind if known is None or kind == known.kind else None


def _cached(repository: str) -> Iterator[Path]:
    folder = cached_folder(repository, (ONNX, OPEN_CLIP_CONFIG, "config.json", *WEIGHTS))
    if folder:
        yield folder


def _missing(model: str, repository: str, known: Known | None, models: Path) -> str:
    size = f", {known.size}" if known else ""
    files = ", ".join(known.wants) if known else "its files"
    return (
        f"The captioner {model} is not on this machine ({repository} on the Hugging Face hub{size}): put {files} into "
        f"{models / (model if known and '/' not in model else repository.rpartition('/')[2])}, or let it be fetched "
        "with --download true."
    )
