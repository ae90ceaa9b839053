"""Which host this process is, told by what it has loaded and brings, never by version numbers."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from lora_trainer.contracts import Host, PlainError

# Modules that only these WebUIs have: the memory managers that their models live in.
FORGES = {
    "backend.memory_management": "Forge",
    "ldm_patched.modules.model_management": "reForge or Forge Classic",
}


def host() -> Host:
    """The WebUI around us, or nobody. Raises PlainError in a WebUI that this version cannot train in."""
    if "modules.shared" not in sys.modules:
        from lora_trainer.hosts.standalone import Standalone

        return Standalone()
    for module, name in FORGES.items():
        if _brought(module):
            raise PlainError(
                f"This WebUI is {name}, and this version trains inside AUTOMATIC1111's only; Forge follows. "
                "The LoRA files it writes work here: train with the command line (see the README)."
            )
    from lora_trainer.hosts.a1111 import A1111

    return A1111()


def _brought(module: str) -> bool:
    """Whether the module could be imported; looked up without importing the packages it stands in."""
    if module in sys.modules:
        return True
    first, *rest = module.split(".")
    spec = find_spec(first)
    places = (spec.submodule_search_locations or ()) if spec else ()
    return any(Path(place, *rest).with_suffix(".py").is_file() for place in places)
