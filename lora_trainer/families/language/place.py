"""Where a language model lies: a path that is named, one of the host's folders, or the Hugging Face hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from lora_trainer.contracts import PlainError
from lora_trainer.families.language.recognise import INDEX, WEIGHTS
from lora_trainer.weights.hub import cached_folder
from lora_trainer.weights.json_file import read_json

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED = [WEIGHTS, "model-*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]


def place_of(base: str, folders: Sequence[Path]) -> Path:
    """The folder or file that `base` names. Raises PlainError where it is not on this machine."""
    if not base or base == "demo":
        raise PlainError(
            "No language model is named; give base_model its folder (config.json, tokenizer and safetensors)."
        )
    found = _here(base, folders)
    if found is not None:
        return found
    if not _REPOSITORY.fullmatch(base):
        raise PlainError(f"There is no folder or file {base}; give base_model the folder of a language model.")
    raise PlainError(
        f"There is no folder {base}, nor is {base} of the Hugging Face hub on this machine yet; have it fetched (by a "
        "run with model.download: true on the command line, by the page's button, by POST models), or put its files "
        "into a folder and name that."
    )


def to_fetch(base: str, folders: Sequence[Path]) -> str:
    """The repository of the hub that must be fetched before `place_of` finds the model; empty where none must."""
    return base if _REPOSITORY.fullmatch(base) and _here(base, folders) is None else ""


def needed(names: Sequence[str]) -> list[str]:
    """Of the files of a model on the hub those that are read here: settings, tokenizer, weights as safetensors.

    None where it has no such weights, or no settings of a language model. Folders within it hold other forms of the
    same model.
    """
    wanted = [name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in _WANTED)]
    return wanted if "config.json" in wanted and any(name.endswith(".safetensors") for name in wanted) else []


def _here(base: str, folders: Sequence[Path]) -> Path | None:
    given = Path(base).expanduser()
    inside = () if ".." in given.parts else folders  # a name does not lead out of the host's folders
    for place in (given, *(folder / base for folder in inside)):
        try:
            if place.exists():
                return place
        except OSError:  # longer than a file system takes
            continue
    return _cached(base) if _REPOSITORY.fullmatch(base) else None


def _cached(repository: str) -> Path | None:
    """The hub's cache of a repository; None where nothing whole is in it."""
    folder = cached_folder(repository, ["config.json"])
    return folder if folder and _whole(folder) else None


def _whole(folder: Path) -> bool:
    """Whether no weights are lacking: a download that was broken off leaves a folder too."""
    index = folder / INDEX
    files = set(read_json(index).get("weight_map", {}).values()) if index.is_file() else {WEIGHTS}
    return all((folder / name).is_file() for name in files)
