"""Fetching a model from the Hugging Face hub into its cache, with how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path, PurePosixPath

from lora_trainer.contracts import PlainError
from lora_trainer.weights.hub import plain_faults

_LOOK = 0.5  # seconds between two looks at what has arrived


def fetch(
    repository: str, needed: Callable[[Sequence[str]], Sequence[str]]
) -> Generator[tuple[int, int], None, Path]:
    """Fetch what is read of a repository; yields (bytes here, bytes wanted) twice a second, returns the folder.

    `needed` chooses among the names of its files.

    What an earlier try has got is not fetched again. Small files come first: where the weights are, the rest is too.
    Whoever closes this before its end lets the file under way arrive in the background, and no other.

    Raises PlainError.
    """
    from huggingface_hub import HfApi

    with plain_faults(repository):
        listed = HfApi().model_info(repository, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in listed}
    files = sorted(needed(list(sizes)), key=lambda file: sizes[file])
    if not files:
        raise PlainError(f"{repository} holds no weights of a kind that is known here.")
    ended: list[Path | PlainError] = []
    given_up = threading.Event()

    def work() -> None:
        try:
            ended.append(_one_after_another(repository, files, given_up))
        except PlainError as error:
            ended.append(error)

    thread = threading.Thread(target=work, name=f"fetching {repository}", daemon=True)
    thread.start()
    wanted = sum(sizes[file] for file in files)
    try:
        while thread.is_alive():
            yield min(_arrived(repository), wanted), wanted
            thread.join(_LOOK)
    finally:
        given_up.set()
    if not ended:
        raise PlainError(f"{repository} could not be fetched; the console has the whole story.")
    if isinstance(ended[0], PlainError):
        raise ended[0]
    yield wanted, wanted
    return ended[0]


def _one_after_another(repository: str, files: Sequence[str], given_up: threading.Event) -> Path:
    """Their folder. Not all at once by `snapshot_download`: its threads have every file come, whatever is ordered, and
    a process does not end before. Raises PlainError."""
    from huggingface_hub import hf_hub_download

    folders = set[Path]()
    for file in files:
        if given_up.is_set():
            break
        with plain_faults(repository):
            path = Path(hf_hub_download(repository, file))
        folders.add(path.parents[len(PurePosixPath(file).parts) - 1])
    if len(folders) != 1:
        raise PlainError(f"{repository} was changed by its owner while it was fetched; fetch it again.")
    return folders.pop()


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
