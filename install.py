"""Makes what is needed to run this, inside a WebUI or without one; standard library only.

    python install.py demo     makes .venv, installs into it, and trains a LoRA on the built-in base model
    python install.py test     also makes the environments with the hosts' pinned libraries, and runs every test
    python install.py beside   for the Python of a WebUI: puts what it lacks into the folder "beside"

A WebUI calls it at each start without a word, which then means "beside"; without a WebUI that does nothing. A second
call reuses what the first one made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent
STAMP = "installed.txt"  # in an environment: the requirements that were installed completely
PYTHONS = ((3, 10), (3, 11), (3, 12))
PINNED_PYTHONS = ((3, 10), (3, 11))  # tokenizers 0.13.3 and Pillow 9.5.0 have no wheels for 3.12

# One version everywhere, so that the seams the tests watch do not move with the day of installation. This one has
# wheels for all of PYTHONS and works beside the hosts' oldest pins.
TORCH = "torch==2.13.0"

# What pyproject.toml asks for; tests/unit/test_install.py compares the two.
RUN = (
    TORCH, "diffusers>=0.30", "peft>=0.13", "transformers>=4.30.2", "accelerate>=0.21", "safetensors>=0.4.2",
    "huggingface_hub>=0.23.2", "numpy>=1.26", "Pillow>=9.5", "PyYAML>=6.0", "tqdm>=4.60", "tensorboard>=2.12",
    "ftfy>=6.1", "regex>=2022.1", "smartcrop>=0.5",
)  # fmt: skip
# Installed without what it asks for: only its tokenizer's vocabulary is read, and the torchvision that it would bring
# along breaks transformers where torch is a CPU build.
ALONE = ("open_clip_torch>=2.20",)
UI = ("gradio>=6",)  # the page without a WebUI; brings fastapi and uvicorn
TEST = ("pytest>=8", "pytest-xdist>=3.3", "hypothesis>=6.100", "onnxruntime>=1.17")
WORKERS = ("-n", "2", "--dist", "worksteal")  # one process of tests for each core of a small machine
# For optimizer.kind; all of them small. bitsandbytes, which belongs to them, has 100 MB and is left to who wants it.
OPTIMIZERS = ("prodigyopt>=1.1", "schedulefree>=1.4", "lion-pytorch>=0.2", "came-pytorch>=0.1.3")
TEXT = ("gguf>=0.10", "pyarrow>=15")  # forms of language models and of their data that other programs write
LINT = ("ruff>=0.11", "pyright[nodejs]>=1.1.390")  # with node from the package index, wherever none is installed

# The libraries that the WebUIs ship or, for diffusers and peft in A1111, the newest that work beside what it ships.
HOST_PINS = {
    "a1111": (
        TORCH, "transformers==4.30.2", "tokenizers==0.13.3", "accelerate==0.21.0", "safetensors==0.4.2",
        "huggingface_hub==0.36.2", "numpy==1.26.2", "Pillow==9.5.0", "diffusers==0.31.0", "peft==0.13.2",
        "fastapi==0.94.0", "starlette==0.26.1", "pydantic==1.10.27", "uvicorn>=0.20", "gradio==3.41.2", "httpx==0.24.1",
    ),
    "forge": (
        TORCH, "transformers==4.46.1", "accelerate==0.31.0", "safetensors==0.4.2", "huggingface_hub==0.26.2",
        "numpy==1.26.2", "Pillow==9.5.0", "diffusers==0.31.0", "peft==0.13.2",
        "fastapi==0.104.1", "pydantic==2.8.2", "uvicorn>=0.20", "gradio==4.40.0",
    ),
}  # fmt: skip
BESIDE_PINS = (  # hosts have them in any version, or can do without
    "PyYAML>=6.0", "tqdm>=4.60", "tensorboard>=2.12", "ftfy>=6.1", "smartcrop>=0.5",
)  # fmt: skip


class Failure(Exception):
    """Something that cannot be gone on from, in a sentence for the user."""


class Environment(NamedTuple):
    """A folder with its own Python and what is installed there."""

    name: str
    folder: Path
    wants: tuple[str, ...]
    pythons: tuple[tuple[int, int], ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class Outcome(NamedTuple):
    """How one of the checks ended."""

    what: str
    verdict: str  # "passed", "FAILED", "left out"
    seconds: float
    passed: int = 0  # tests
    failed: int = 0
    skipped: int = 0


def main(argv: list[str]) -> int:
    """Do what the words say; returns the exit code."""
    if not argv:
        return _at_the_start_of_a_host()
    parser = argparse.ArgumentParser(
        prog="python install.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", choices=("demo", "test", "beside"), help="further words go to the demo or to pytest")
    parser.add_argument("--only", choices=("lint", "newest", *HOST_PINS), help="test: this part alone")
    given, rest = parser.parse_known_args(argv)
    try:
        if given.what == "demo":
            return _demo(rest)
        if given.what == "beside":
            return int(not _beside())
        return _test(given.only, rest)
    except Failure as failure:
        print(f"\nError: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped by hand; the same command goes on from here.", file=sys.stderr)
        return 130


# --- beside ----------------------------------------------------------------------------------------------------------


def _at_the_start_of_a_host() -> int:
    """Exit code 0 whatever happens: the WebUI starts, and the tab says what is missing."""
    from lora_trainer.hosts.installer import called_by_a_host

    if called_by_a_host():
        _beside()
    return 0


def _beside() -> bool:
    """Whether all that the host lacks lies beside it now."""
    from lora_trainer.hosts.installer import put_beside

    put = put_beside()
    if put.told:
        print(put.told)
    return put.whole


# --- demo ------------------------------------------------------------------------------------------------------------


def _demo(rest: list[str]) -> int:
    environment = _made(Environment("newest", ROOT / ".venv", (*RUN, *UI), PYTHONS))
    code = _call([environment.python, "-m", "lora_trainer", "demo", *rest])
    if code == 0:
        print(f"\nTrain on your own pictures in a page: {environment.python} -m lora_trainer ui", flush=True)
    return code


# --- test ------------------------------------------------------------------------------------------------------------


def _test(only: str | None, rest: list[str]) -> int:
    outcomes: list[Outcome] = []
    newest = Environment("newest", ROOT / ".venv", (*RUN, *UI, *OPTIMIZERS, *TEXT, *TEST, *LINT), PYTHONS)
    if only in (None, "lint", "newest"):
        outcomes.append(_install(newest))
    if only in (None, "lint"):
        outcomes.append(_checked("ruff", [newest.python, "-m", "ruff", "check", "."]))
        outcomes.append(_checked("pyright", [newest.python, "-m", "pyright", "--pythonpath", newest.python]))
    if only in (None, "newest"):
        outcomes.append(_suite(newest, ["tests"], rest))
    for name, pins in HOST_PINS.items():
        if only in (None, name):
            outcomes += _pinned(name, pins, rest)
    return _summary(outcomes)


def _pinned(name: str, pins: tuple[str, ...], rest: list[str]) -> list[Outcome]:
    """The tests of the engine and of the page with a host's libraries."""
    if not _interpreter(PINNED_PYTHONS):
        print(f"\nThe libraries of {name} have wheels for Python 3.10 and 3.11, and neither is on the PATH.")
        return [Outcome(f"pytest, {name}", "left out", 0.0)]
    environment = Environment(name, ROOT / f".venv-{name}", (*pins, *BESIDE_PINS, *TEST), PINNED_PYTHONS)
    folders = [f"tests/{name}" for name in ("unit", "parity", "contract", "ui") if (ROOT / "tests" / name).is_dir()]
    return [
        _install(environment),
        _suite(environment, [*folders, "-m", "not newest_only and not slow"], rest),
    ]


def _install(environment: Environment) -> Outcome:
    begun = time.monotonic()
    _made(environment)
    return Outcome(f"install, {environment.name}", "passed", time.monotonic() - begun)


def _checked(what: str, command: list[str | Path], **variables: str) -> Outcome:
    print(f"\n=== {what}", flush=True)
    begun = time.monotonic()
    code = _call(command, **variables)
    return Outcome(what, "FAILED" if code else "passed", time.monotonic() - begun)


def _suite(environment: Environment, what: list[str], rest: list[str]) -> Outcome:
    """Run pytest in an environment and count from its report; tests named in `rest` take the place of the folders."""
    if any(map(_is_test, rest)):
        what = [word for word in what if not _is_test(word)]
    with tempfile.TemporaryDirectory(prefix="lora_trainer.tests.", ignore_cleanup_errors=True) as folder:
        report = Path(folder) / "report.xml"
        command = [environment.python, "-m", "pytest", *WORKERS, f"--junitxml={report}", *what, *rest]
        # Gigabytes of checkpoints are written in a folder that goes when the tests are over, however they end.
        outcome = _checked(f"pytest, {environment.name}", command, TMPDIR=folder)
        if not report.exists():
            return outcome._replace(verdict="FAILED", failed=1)
        return outcome._replace(**_counts(report))


def _is_test(word: str) -> bool:
    """Whether it names tests: a folder or file of them, and no other path, as `--webui` has one."""
    path = (ROOT / word.partition("::")[0]).resolve()
    return path.is_relative_to(ROOT / "tests") and path.exists()


def _counts(report: Path) -> dict[str, int]:
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total: dict[str, int] = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in total:
            total[name] += int(suite.get(name, "0"))
    failed = total["failures"] + total["errors"]
    return {"passed": total["tests"] - failed - total["skipped"], "failed": failed, "skipped": total["skipped"]}


def _summary(outcomes: list[Outcome]) -> int:
    print(f"\n{'':20} {'':>9} {'seconds':>8} {'passed':>7} {'failed':>7} {'skipped':>8}")
    for row in outcomes:
        counts = f"{row.passed:7} {row.failed:7} {row.skipped:8}" if row.what.startswith("pytest") else ""
        print(f"{row.what:20} {row.verdict:>9} {row.seconds:8.1f} {counts}".rstrip())
    passed, failed, skipped = (sum(column) for column in zip(*(row[3:] for row in outcomes), strict=True))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return int(any(row.verdict == "FAILED" for row in outcomes))


# --- environments ----------------------------------------------------------------------------------------------------


def _made(environment: Environment) -> Environment:
    """The environment, complete; made or completed where it is not."""
    stamp = environment.folder / STAMP
    if _works(environment):
        if set(environment.wants) <= set(_lines(stamp)):
            return environment
    else:
        _create(environment)
    print(f"\n=== Installing into {environment.folder.name} (the first time takes some minutes)", flush=True)
    stamp.unlink(missing_ok=True)
    _pip(environment, list(environment.wants))
    _pip(environment, ["--no-deps", *ALONE])
    stamp.write_text("\n".join(sorted(environment.wants)) + "\n", encoding="utf-8")
    return environment


def _works(environment: Environment) -> bool:
    """Whether its Python still starts (the one it was made from may be gone) and has pip."""
    return environment.python.exists() and _quiet([environment.python, "-m", "pip", "--version"]).returncode == 0


def _create(environment: Environment) -> None:
    python = _interpreter(environment.pythons)
    if not python:
        versions = ", ".join(f"{major}.{minor}" for major, minor in environment.pythons)
        raise Failure(
            f"Python {versions} is wanted, but this is {sys.version.split()[0]} and no other is on the PATH; "
            "install one of these and start this script with it."
        )
    made = _quiet([*python, "-m", "venv", "--clear", environment.folder])
    if made.returncode:
        told = " ".join((made.stdout + made.stderr).split())[-600:]
        raise Failure(f"Python could not make the environment {environment.folder.name}. It said: {told}")


def _interpreter(versions: tuple[tuple[int, int], ...]) -> list[str] | None:
    """A command that starts one of these Pythons: this one if it fits, else the newest that is found."""
    if sys.version_info[:2] in versions:
        return [sys.executable]
    for major, minor in reversed(versions):
        command = ["py", f"-{major}.{minor}"] if os.name == "nt" else [f"python{major}.{minor}"]
        if shutil.which(command[0]) and _quiet([*command, "-c", ""]).returncode == 0:
            return command
    return None


def _pip(environment: Environment, words: list[str]) -> None:
    """Install; shows the larger steps, and pip's last lines when it fails."""
    command = [str(environment.python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    last: deque[str] = deque(maxlen=15)
    with subprocess.Popen([*command, *words], cwd=ROOT, env=_surroundings(), text=True, encoding="utf-8",
                          errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pip:  # fmt: skip
        for line in pip.stdout or ():
            last.append(line.rstrip())
            if line.lstrip().startswith(("Downloading", "Installing collected")):
                print("  " + line.strip()[:110], flush=True)
    if pip.returncode:
        raise Failure("pip could not install what is needed. Its last lines were:\n  " + "\n  ".join(last))


def _lines(stamp: Path) -> list[str]:
    return stamp.read_text(encoding="utf-8").splitlines() if stamp.exists() else []


def _call(command: list[str | Path], **variables: str) -> int:
    words, surroundings = [str(word) for word in command], _surroundings() | variables
    return subprocess.run(words, cwd=ROOT, env=surroundings, check=False).returncode


def _quiet(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], env=_surroundings(), capture_output=True, text=True,
                          check=False)  # fmt: skip


def _surroundings() -> dict[str, str]:
    """This process's variables without those that would put another Python's packages into an environment."""
    foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in foreign}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
