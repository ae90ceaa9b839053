"""The settings that lie beside weights, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from lora_trainer.contracts import PlainError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises PlainError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlainError(f"{path} cannot be read ({error}); download or copy it again.") from error
    if not isinstance(content, dict):
        raise PlainError(f"{path} holds no JSON object; download or copy it again.")
    return cast("dict[str, Any]", content)
