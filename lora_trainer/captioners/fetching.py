"""Fetching a captioning model from the Hugging Face hub into its cache, with how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from lora_trainer.captioners.models import needed
from lora_trainer.contracts import PlainError

_LOOK = 0.5  # seconds between two looks at what has arrived


def fetch(repository: str) -> Generator[tuple[int, int], None, Path]:
    """Fetch what is read of a repository; yields (bytes here, bytes wanted) twice a second, returns the folder.

    What an earlier try has got is not fetched again. Whoever closes this before its end lets the file under way arrive
    in the background. Raises PlainError.
    """
    from huggingface_hub import HfApi, snapshot_download

    def listed() -> dict[str, int]:
        found = HfApi().model_info(repository, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in found}
        return {file: sizes[file] for file in needed(list(sizes))}

    files = _plainly(repository, listed)
    if not files:
        raise PlainError(f"{repository} holds no weights of a kind that is known here.")
    ended: list[Path | PlainError] = []

    def work() -> None:
        try:
            ended.append(_plainly(repository, lambda: Path(snapshot_download(repository, allow_patterns=list(files)))))
        except PlainError as error:
            ended.append(error)

    thread = threading.Thread(target=work, name=f"fetching {repository}", daemon=True)
    thread.start()
    wanted = sum(files.values())
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


def _plainly(repository: str, act: Callable[[], Any]) -> Any:
    from huggingface_hub.utils import HfHubHTTPError

    # Its own error is a kind of its HTTP client's, which is another library in each of its generations, and whose
    # errors come through bare as well: that base of it catches both.
    bases: Any = HfHubHTTPError.__bases__
    try:
        return act()
    except (OSError, ValueError, *bases) as error:  # no network, offline mode, no such repository, disk full
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise PlainError(
            f"{repository} could not be fetched from the Hugging Face hub ({told}); try again later, when what has "
            "come already is kept, or put the files there by hand."
        ) from error
