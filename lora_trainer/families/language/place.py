"""Where a language model lies: a path that is named, one of the host's folders, or the cache of the Hugging Face hub;
and how it gets there, if that is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lora_trainer.contracts import PlainError
from lora_trainer.weights.hub import plain_faults

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "*.txt", "*.jinja"]


def place_of(base: str, folders: Sequence[Path], *, download: bool) -> Path:
    """The folder or file that `base` names; fetched first if it must and may be. Raises PlainError."""
    if not base or base == "demo":
        raise PlainError(
            "No language model is named; give base_model its folder (config.json, tokenizer and safetensors)."
        )
    given = Path(base).expanduser()
    for place in (given, *(folder / base for folder in folders)):
        if place.exists():
            return place
    if not _REPOSITORY.fullmatch(base):
        raise PlainError(f"There is no folder or file {base}; give base_model the folder of a language model.")
    cached = _snapshot(base, local=True)
    if cached is not None:
        return cached
    if not download:
        raise PlainError(
            f"There is no folder {base}, nor is {base} of the Hugging Face hub on this machine; put its files into a "
            "folder and name that, or let it be fetched with model.download: true."
        )
    fetched = _snapshot(base, local=False)
    assert fetched is not None
    return fetched


def _snapshot(repository: str, *, local: bool) -> Path | None:
    """The hub's cache of a repository; None where nothing whole is in it and nothing may be fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    with plain_faults(repository):
        try:
            return Path(snapshot_download(repository, allow_patterns=_WANTED, local_files_only=local))
        except LocalEntryNotFoundError:
            if local:
                return None
            raise
