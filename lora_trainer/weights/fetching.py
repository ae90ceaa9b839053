"""Fetching a model from the Hugging Face hub into its cache, with how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from lora_trainer.contracts import PlainError
from lora_trainer.weights.hub import plain_faults

_LOOK = 0.5  # seconds between two looks at what has arrived


def fetch(
    repository: str, needed: Callable[[Sequence[str]], Sequence[str]]
) -> Generator[tuple[int, int], None, Path]:
    """Fetch what is read of a repository; yields (bytes here, bytes wanted) twice a second, returns the folder.

    `needed` chooses among the names of its files.

    What an earlier try has got is not fetched again. Whoever closes this before its end lets the file under way arrive
    in the background. Raises PlainError.
    """
    from huggingface_hub import HfApi, snapshot_download

    with plain_faults(repository):
        listed = HfApi().model_info(repository, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in listed}
    files = list(needed(list(sizes)))
    if not files:
        raise PlainError(f"{repository} holds no weights of a kind that is known here.")
    ended: list[Path | PlainError] = []

    def work() -> None:
        try:
            with plain_faults(repository):
                ended.append(Path(snapshot_download(repository, allow_patterns=files)))
        except PlainError as error:
            ended.append(error)

    thread = threading.Thread(target=work, name=f"fetching {repository}", daemon=True)
    thread.start()
    wanted = sum(sizes[file] for file in files)
    while thread.is_alive():
        yield min(_arrived(repository), wanted), wanted
        thread.join(_LOOK)
    if not ended:
        raise PlainError(f"{repository} could not be fetched; the console has the whole story.")
    if isinstance(ended[0], PlainError):
        raise ended[0]
    yield wanted, wanted
    return ended[0]


def _arrived(repository: str) -> int:
    """Bytes of the repository in the hub's cache, those of files under way too."""
    from huggingface_hub.constants import HF_HUB_CACHE

    blobs = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    arrived = 0
    for blob in blobs.iterdir() if blobs.is_dir() else ():
        try:
            arrived += blob.stat().st_size
        except OSError:  # renamed between the two looks, since it is whole now
            continue
    return arrived
