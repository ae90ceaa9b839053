"""The packages that a training needs and a WebUI may lack: which are there, whether they fit, and how they are found.

They lie in a folder of the extension, beside the host's own packages and never among them: installer.py puts them
there, and `ready` makes them importable when the first training begins. The folder goes to the end of the search path,
so that what the host or another extension brings wins. Versions are read from metadata before anything is imported: a
package that does not fit its neighbours breaks at import, and others with it (diffusers' models import peft).
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

from lora_trainer.contracts import PlainError

EXTENSION = Path(__file__).resolve().parents[2]
FOLDER = EXTENSION / "beside"  # git-ignored
PACKAGES = FOLDER / "packages"
REFUSAL = FOLDER / "failed.txt"  # why the last attempt to fill the folder failed, in one sentence

Version = tuple[int, ...]


class Wanted(NamedTuple):
    """A package that a training imports, or that one of its options does."""

    name: str
    exact: str  # what is put beside a host that has none
    first: Version  # oldest that our code works with
    beyond: Version  # first that it was not tried with
    needed: bool = True  # whether there is no training without it


# Newest that import beside A1111's transformers 4.30.2 and accelerate 0.21.0, pipelines included; the pair Forge ships.
# Neither imports anything at 0.31.0 and 0.13.2 that A1111 lacks (importlib_metadata is for Python before 3.8).
WANTED = (
    Wanted("diffusers", "0.31.0", (0, 30), (0, 43)),
    Wanted("peft", "0.13.2", (0, 13), (0, 22)),
    Wanted("smartcrop", "0.5.0", (0, 5), (0, 6), needed=False),  # data.crop: focal, which says so where it is missing
)


class Neighbour(NamedTuple):
    """A name that a package imports from another without asking for it in its metadata."""

    name: str
    since: Version
    other: str
    least: Version


NEIGHBOURS = (
    Neighbour("peft", (0, 14), "transformers", (4, 43)),  # EncoderDecoderCache
    Neighbour("peft", (0, 15), "accelerate", (0, 32)),  # utils.memory.clear_device_cache
    Neighbour("peft", (0, 16), "transformers", (4, 44)),  # HybridCache
    Neighbour("diffusers", (0, 36), "torch", (2, 3)),  # torch.xpu
    Neighbour("diffusers", (0, 37), "transformers", (4, 48)),  # Dinov2WithRegistersConfig
)


class Found(NamedTuple):
    """A package as it would be imported now."""

    version: str
    where: str  # its folder, or "" where that is not told


def ready() -> None:
    """Make the packages importable; to be called before the first import of diffusers or peft.

    Raises PlainError, with what to do, where one is missing or does not fit.
    """
    if sentence := missing():
        raise PlainError(sentence)
    if lacking() and str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
        importlib.invalidate_caches()


def bring_optional() -> None:
    """Import what no training needs, from the folder, so that the page finds it before the first training.

    The search path stays as it is: diffusers and peft are to appear there only when a training begins.
    """
    there = {wanted.name for wanted in WANTED if not wanted.needed and _provided(wanted.name) is None}
    for name in there & {line.partition("==")[0] for line in installed()}:
        sys.path.append(str(PACKAGES))
        with suppress(ImportError):  # whoever uses it says that it is missing
            importlib.import_module(name)
        sys.path.remove(str(PACKAGES))


def missing() -> str:
    """What keeps a training from starting, and what to do about it, in words; empty where nothing does."""
    needed = [wanted for wanted in WANTED if wanted.needed]
    told = [sentence for wanted in needed if (sentence := _misfit(wanted))]
    wants = _absent(needed)
    there = installed() if wants else []
    if absent := [line.partition("==")[0] for line in wants if line not in there]:
        last = f" The last attempt failed: {reason}" if (reason := refusal()) else ""
        told.append(
            f"A training needs {' and '.join(absent)}, which this WebUI lacks: start it once while there is a network "
            f'and without --skip-install, or run "{sys.executable}" "{EXTENSION / "install.py"}" beside.{last}'
        )
    return " ".join(told)


def lacking() -> list[str]:
    """What is to lie in the folder, as "name==version": packages that the host has in no version at all."""
    return _absent(WANTED)


def _absent(packages: Sequence[Wanted]) -> list[str]:
    return [f"{wanted.name}=={wanted.exact}" for wanted in packages if _provided(wanted.name) is None]


def installed(folder: Path | None = None) -> list[str]:
    """What lies in the folder, as "name==version", as far as every file of it is there in full."""
    found = distributions(path=[str(folder or PACKAGES)])
    return sorted(f"{distribution.name}=={distribution.version}" for distribution in found if _whole(distribution))


def refusal() -> str:
    """Why the last attempt to fill the folder failed; empty where it did not."""
    return REFUSAL.read_text(encoding="utf-8").strip() if REFUSAL.exists() else ""


def _whole(distribution: Distribution) -> bool:
    """Whether each file that was installed is there in its size: an interrupted copy is shorter."""
    for file in distribution.files or ():
        if file.size is None or ".." in file.parts:  # caches, which Python makes anew; start scripts, left behind
            continue
        path = Path(str(file.locate()))
        if not path.is_file() or path.stat().st_size != file.size:
            return False
    return bool(distribution.files)


def _misfit(wanted: Wanted) -> str:
    """The sentence about a version, the host's or another extension's, that a training cannot use; else empty."""
    found = _provided(wanted.name)
    if found is None:
        return ""
    version = _numbers(found.version)
    if not wanted.first <= version < wanted.beyond:
        fault = f"but a training works with {_span(wanted)}"
    elif other := _too_old_beside(wanted.name, version):
        fault = f"but it cannot be imported beside {other}"
    else:
        return ""
    place = f" in {found.where}" if found.where else ""
    return f"{wanted.name} {found.version} was found{place}, {fault}: {_cure(wanted, found)}"


def _cure(wanted: Wanted, found: Found) -> str:
    if not Path(found.where).is_relative_to(sys.prefix):
        return "switch off the extension that brings it, and restart the WebUI."
    command = f'"{sys.executable}" -m pip install --no-deps {wanted.name}=={wanted.exact}'
    return f"run {command}, or switch off the extension that installed it, and restart the WebUI."


def _too_old_beside(name: str, version: Version) -> str:
    """The package, with its version, that this one cannot be imported beside; empty if it can, or was."""
    if sys.modules.get(name):
        return ""
    for neighbour in NEIGHBOURS:
        other = _provided(neighbour.other) if neighbour.name == name and version >= neighbour.since else None
        if other and _numbers(other.version) < neighbour.least:
            return f"{neighbour.other} {other.version}"
    return ""


def _span(wanted: Wanted) -> str:
    """The versions in words: "0.30 to 0.42"."""
    major, minor = wanted.beyond
    return f"{'.'.join(map(str, wanted.first))} to {major}.{minor - 1}"


def _provided(name: str) -> Found | None:
    """The package as the host or another extension brings it: loaded already, or first on the search path."""
    if module := sys.modules.get(name):
        file = getattr(module, "__file__", None)
        return Found(str(getattr(module, "__version__", "0")), str(Path(file).parent.parent) if file else "")
    path = [entry for entry in sys.path if entry != str(PACKAGES)]
    for distribution in distributions(name=name, path=path):
        return Found(distribution.version, str(distribution.locate_file("")))
    return None


def _numbers(version: str) -> Version:
    """The leading numbers of a version: "2.13.0+cpu" to (2, 13, 0)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()
