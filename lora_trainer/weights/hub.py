"""The Hugging Face hub's cache on this machine, and its faults in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_trainer.contracts import PlainError


def cached_folder(repository: str, names: Iterable[str]) -> Path | None:
    """The folder of the hub's cache that holds one of these files of a repository; None where none is here, and for
    what is no repository's name.

    Not `snapshot_download(local_files_only=True)`: for newer releases a folder lacks what was never to be fetched.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        found = [try_to_load_from_cache(repository, name) for name in names]
    except HFValidationError:
        return None
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


@contextmanager
def plain_faults(repository: str) -> Iterator[None]:
    """Within it whatever keeps a repository from being listed or fetched is a PlainError."""
    from huggingface_hub.utils import HfHubHTTPError

    # Its own error is a kind of its HTTP client's, which is another library in each of its generations, and whose
    # errors come through bare as well: that base of it catches both.
    bases: Any = HfHubHTTPError.__bases__
    try:
        yield
    except (OSError, ValueError, *bases) as error:  # no network, offline mode, no such repository, disk full
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise PlainError(
            f"{repository} could not be fetched from the Hugging Face hub ({told}); try again later, when what has "
            "come already is kept, or put the files into a folder by hand."
        ) from error
