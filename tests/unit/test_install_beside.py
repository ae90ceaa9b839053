"""install.py as a WebUI calls it: what the WebUI lacks comes beside it, and nothing of its own is changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.builders.wheels import write_installed, write_wheel
from tests.test_layers import PACKAGE, imported, sources

ROOT = Path(__file__).resolve().parents[2]
# The newest that import beside A1111's pins: pipelines of diffusers 0.32 and all of peft 0.14 do not.
WANTED = ("diffusers==0.31.0", "peft==0.13.2", "smartcrop==0.5.0")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of a WebUI, with pip and one package of its own."""
    folder = tmp_path_factory.mktemp("host") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wheel = write_wheel(folder.parent, "transformers", "4.30.2")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    return python


class Start(NamedTuple):
    code: int
    told: str
    seconds: float  # of a processor, which other tests on the machine do not take


def _of_children() -> float:
    """Seconds of a processor that this process's ended children have taken."""
    spent = os.times()
    return spent.children_user + spent.children_system


class Extension:
    """A copy of the extension in a WebUI's folder."""

    def __init__(self, root: Path, python: Path) -> None:
        self.webui, self.python, self.wheels = root / "webui", python, root / "wheels"
        self.folder = self.webui / "extensions" / "lora-trainer"
        self.packages, self.refusal = self.folder / "beside" / "packages", self.folder / "beside" / "failed.txt"
        for file in ("install.py", "lora_trainer/__init__.py", "lora_trainer/contracts.py",
                     "lora_trainer/hosts/__init__.py", "lora_trainer/hosts/beside.py",
                     "lora_trainer/hosts/installer.py"):  # fmt: skip
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, self.folder / file)
        (self.webui / "modules").mkdir()
        for file in ("launch.py", "modules/launch_utils.py"):
            (self.webui / file).touch()
        for requirement in WANTED:
            write_wheel(self.wheels, *requirement.split("=="))

    def start(self, *words: str, offline: bool = False, path: Path | None = None, host: bool = True) -> Start:
        """As modules/launch_utils.py calls it (run_extension_installer); no index but the wheels made here."""
        entries = [*([str(self.webui)] if host else []), *([str(path)] if path else []), ""]
        surroundings = {
            **os.environ, "PYTHONPATH": os.pathsep.join(entries), "PIP_NO_INDEX": "1", "PIP_USER": "1",
            "PIP_FIND_LINKS": "" if offline else str(self.wheels), "PIP_CONFIG_FILE": os.devnull,
        }  # fmt: skip
        begun = _of_children()
        done = subprocess.run([self.python, self.folder / "install.py", *words], env=surroundings, check=False,
                              capture_output=True, text=True)  # fmt: skip
        assert done.stderr == ""
        return Start(done.returncode, done.stdout, _of_children() - begun)

    def holds(self) -> list[str]:
        """What lies beside, as pip's own listing tells it."""
        listed = [self.python, "-m", "pip", "list", "--format", "freeze", "--path", self.packages]
        return sorted(subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split())

    def freeze(self) -> str:
        """The host's own packages."""
        return subprocess.run([self.python, "-m", "pip", "freeze", "--all"], capture_output=True, text=True,
                              check=True).stdout  # fmt: skip


@pytest.fixture
def extension(tmp_path: Path, python: Path) -> Extension:
    return Extension(tmp_path, python)


def test_what_the_host_lacks_comes_beside_it_once(extension: Extension) -> None:
    before = extension.freeze()
    first = extension.start()
    assert first.code == 0
    assert first.told == (
        "LoRA Trainer: put diffusers 0.31.0, peft 0.13.2 and smartcrop 0.5.0 into "
        f"{extension.folder / 'beside'}; nothing of the WebUI's own was changed.\n"
    )
    assert extension.holds() == list(WANTED)
    assert extension.freeze() == before
    assert "transformers @ " in before
    stamp = extension.packages.stat().st_mtime_ns

    later = [extension.start(offline=True) for _ in range(3)]
    assert {start[:2] for start in later} == {(0, "")}, "no network is asked"
    assert min(start.seconds for start in later) < 1
    assert extension.packages.stat().st_mtime_ns == stamp
    assert [path.name for path in (extension.folder / "beside").iterdir()] == ["packages"]


def test_without_a_host_nothing_happens(extension: Extension) -> None:
    assert extension.start(host=False)[:2] == (0, "")
    assert not (extension.folder / "beside").exists()
    assert extension.start("beside", host=False).code == 0, "by hand"
    assert extension.holds() == list(WANTED)


def test_only_what_is_lacking_is_put_there(extension: Extension, tmp_path: Path) -> None:
    write_installed(tmp_path / "reforge", "diffusers", "0.32.2")
    assert "put peft 0.13.2 and smartcrop 0.5.0 into" in extension.start(path=tmp_path / "reforge").told
    assert extension.holds() == ["peft==0.13.2", "smartcrop==0.5.0"]
    write_installed(tmp_path / "reforge", "peft", "0.9.0")
    write_installed(tmp_path / "reforge", "smartcrop", "0.4.0")
    shutil.rmtree(extension.packages)
    assert extension.start(path=tmp_path / "reforge").told == "", "another one would never be found; the tab says so"
    assert not extension.packages.exists()


def test_offline_the_host_starts_and_the_reason_is_kept(extension: Extension) -> None:
    offline = extension.start(offline=True)
    reason = "the package index was not reached; is there a network?"
    assert offline.code == 0
    assert offline.told == (
        "LoRA Trainer: diffusers 0.31.0, peft 0.13.2 and smartcrop 0.5.0 could not be put beside the WebUI, which "
        f"starts without: {reason}\n"
    )
    assert extension.refusal.read_text().strip() == reason
    assert [path.name for path in (extension.folder / "beside").iterdir()] == ["failed.txt"]
    assert extension.start("beside", offline=True).code == 1, "by hand, a failure is one"

    extension.start()
    assert extension.holds() == list(WANTED)
    assert not extension.refusal.exists()


def test_what_pip_says_is_told(extension: Extension) -> None:
    (extension.wheels / "peft-0.13.2-py3-none-any.whl").write_bytes(b"not a wheel")
    told = extension.start().told
    assert "which starts without: pip said: " in told
    assert "peft" in told.partition("pip said: ")[2]
    assert not extension.packages.exists(), "all or nothing"


def test_a_broken_installation_is_made_anew(extension: Extension) -> None:
    extension.start()
    (extension.packages / "diffusers" / "content.py").write_text("WHO", encoding="utf-8")  # a copy that was cut off
    left = extension.folder / "beside" / "new-killed"
    (left / "packages").mkdir(parents=True)
    assert "put diffusers 0.31.0, peft 0.13.2 and smartcrop 0.5.0" in extension.start().told
    assert (extension.packages / "diffusers" / "content.py").read_text() == 'WHOSE = "diffusers"\n'
    assert not left.exists()

    shutil.rmtree(extension.packages / "peft-0.13.2.dist-info")
    assert "put diffusers" in extension.start().told
    assert extension.holds() == list(WANTED)


def test_a_folder_that_cannot_be_written_is_told(extension: Extension) -> None:
    (extension.folder / "beside").write_text("in the way")
    done = extension.start()
    assert done.code == 0
    assert f"which starts without: the folder {extension.folder / 'beside'} cannot be written: " in done.told


def test_an_environment_without_pip_is_told(extension: Extension, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    extension.python = bare / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    assert "there is no pip in the WebUI's environment; get it with: " in extension.start().told


def test_nothing_else_is_needed_that_a1111_lacks() -> None:
    """Its requirements_versions.txt and launcher (v1.10.1) with what these bring; the rest is beside, or optional."""
    listed = {"PIL", "accelerate", "fastapi", "gradio", "numpy", "open_clip", "psutil", "safetensors", "torch",
              "torchvision", "transformers"}  # fmt: skip
    brought = {"ftfy", "huggingface_hub", "jinja2", "regex", "starlette", "tokenizers", "tqdm", "uvicorn", "yaml"}
    optional = {"bitsandbytes", "gguf", "onnxruntime", "pyarrow"}  # who asks for what needs it is told
    beside = {requirement.partition("==")[0] for requirement in WANTED}
    theirs = {"modules", "networks"}
    used = {
        name.partition(".")[0]
        for file in sources(ROOT)
        if file.relative_to(ROOT).parts[0] == PACKAGE
        for _, name in imported(file, ROOT)
    } - sys.stdlib_module_names
    assert used - listed - brought - beside - theirs - optional - {PACKAGE} == set()
