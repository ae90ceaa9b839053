"""Shows the folder of a finished LoRA in the file manager of the machine that the server runs on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.contracts import PlainError

if TYPE_CHECKING:
    from lora_trainer.jobs.registry import Registry

_OPENERS = {"darwin": "open", "win32": "explorer"}  # elsewhere the desktop's own


def open_folder(registry: Registry, job_id: str, from_here: bool) -> dict[str, Any]:
    """Open the folder of the job's newest file. Raises PlainError for a browser elsewhere, or where nothing opens."""
    try:
        files = registry.job(job_id).files
    except KeyError as error:
        raise PlainError("This job is not known any more.") from error
    if not files:
        raise PlainError("This job has written no file yet.")
    folder = Path(files[-1]).parent
    if not from_here:
        raise PlainError(f"The folder can be opened only on the machine that the server runs on; it is {folder}.")
    try:
        subprocess.Popen([_OPENERS.get(sys.platform, "xdg-open"), str(folder)])
    except OSError as error:
        raise PlainError(f"No file manager could be started ({error.strerror}); the folder is {folder}.") from error
    return {"kind": "opened", "folder": str(folder)}
