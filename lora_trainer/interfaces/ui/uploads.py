"""Files dropped onto gradio's own field become a folder of images that a configuration can name.

The page's script sends what is dropped elsewhere, and whole folders, over HTTP (interfaces/api/uploads.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_trainer.contracts import HostPaths, PlainError

if TYPE_CHECKING:
    from lora_trainer.jobs.uploads import Taken


def keep(dropped: Iterable[str | Path], current: str, paths: HostPaths) -> Taken:
    """Copy dropped files into a folder of their own, and tell what became of them.

    A second drop joins the first: where `current`, the folder of the form, is such a folder already, it is used
    again. Raises PlainError.
    """
    from lora_trainer.jobs.uploads import Upload, place_of

    root = place_of(paths).resolve()
    named = Path(current).expanduser().resolve() if current.strip() else None
    again = named is not None and named.is_relative_to(root) and named != root and named.is_dir()
    upload = Upload.begin(paths, folder=named if again else None)
    try:
        for file in map(Path, dropped):
            shutil.copyfile(file, upload.place_for(file.name, file.stat().st_size))
        return upload.finish()
    except OSError as error:
        raise PlainError(f"The dropped files cannot be kept ({error.strerror}); name a folder.") from error
    finally:
        upload.cancel()
