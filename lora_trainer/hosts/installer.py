"""Fills the folder beside the host with what the host lacks, and changes none of its own packages.

A WebUI runs install.py at each start and goes on when it fails: so a second start asks no network, and a failure
becomes a sentence that the tab shows. Standard library only; the running WebUI does not import this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from lora_trainer.hosts import beside

PATIENCE = 900  # seconds for 4 MB over a slow line, and for compiling what came


class Put(NamedTuple):
    """How filling the folder ended."""

    whole: bool  # whether everything that the host lacks is there
    told: str  # what was done or what failed, in a sentence; empty where nothing had to be done


def called_by_a_host() -> bool:
    """Whether a WebUI's launcher started this process: it puts its own root on PYTHONPATH, and nothing else does."""
    roots = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return any((root / "launch.py").is_file() and (root / "modules/launch_utils.py").is_file() for root in roots)


def put_beside() -> Put:
    """Install what the host lacks, unless it is there in full; why that failed is also kept for the tab."""
    wants = beside.lacking()
    names = _listed([want.replace("==", " ") for want in wants])
    try:
        if set(wants) <= set(beside.installed()):
            beside.REFUSAL.unlink(missing_ok=True)
            return Put(True, "")
        beside.FOLDER.mkdir(exist_ok=True)
        reason = _fill(wants)
        if reason:
            beside.REFUSAL.write_text(reason + "\n", encoding="utf-8")
        else:
            beside.REFUSAL.unlink(missing_ok=True)
    except OSError as error:  # nowhere to keep the reason, then: the tab can only say how to try again
        reason = f"the folder {beside.FOLDER} cannot be written: {error.strerror or error}."
    if reason:
        return Put(False, f"LoRA Trainer: {names} could not be put beside the WebUI, which starts without: {reason}")
    return Put(True, f"LoRA Trainer: put {names} into {beside.FOLDER}; nothing of the WebUI's own was changed.")


def _listed(names: list[str]) -> str:
    """In a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _fill(wants: list[str]) -> str:
    """Fill a new folder and put it in the old one's place once it is whole; the reason if it is not."""
    for left in beside.FOLDER.glob("new-*"):  # of an installation that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="new-", dir=beside.FOLDER, ignore_cleanup_errors=True) as scratch:
        new = Path(scratch) / "packages"
        if reason := _pip(wants, new):
            return reason
        if set(beside.installed(new)) != set(wants):
            return "pip said that it installed them, but files are missing."
        if beside.PACKAGES.exists():
            beside.PACKAGES.rename(Path(scratch) / "old")
        new.rename(beside.PACKAGES)
    return ""


def _pip(wants: list[str], target: Path) -> str:
    """Install into a folder of its own, without what the packages ask for; the reason if it failed."""
    index = os.environ.get("INDEX_URL")  # A1111's own variable for it
    command = [
        sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary", ":all:", "--target", str(target),
        "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "1", "--timeout", "15",
        *(("--index-url", index) if index else ()), *wants,
    ]  # fmt: skip
    surroundings = {**os.environ, "PIP_USER": "0"}  # a pip that is set to install for the user refuses --target
    try:
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, encoding="utf-8",
                              errors="replace", timeout=PATIENCE, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"pip was not done after {PATIENCE // 60} minutes."
    return _reason(done.stdout + done.stderr) if done.returncode else ""


def _reason(told: str) -> str:
    """What pip complained of, in a sentence."""
    if "No module named pip" in told:
        return f"there is no pip in the WebUI's environment; get it with: {sys.executable} -m ensurepip."
    if "(from versions: none)" in told:
        return "the package index was not reached; is there a network?"
    errors = [line.removeprefix("ERROR: ") for line in told.splitlines() if line.startswith("ERROR: ")]
    last = errors[-1] if errors else told.strip().rpartition("\n")[2]
    return f"pip said: {last.strip().rstrip('.')}."
