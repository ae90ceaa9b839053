"""Packages beside the host: what is found, what fits, and that the host's own win."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.hosts import beside
from tests.builders.wheels import write_installed

A1111 = {"transformers": "4.30.2", "accelerate": "0.21.0", "torch": "2.1.2"}
REFORGE = {"transformers": "4.48.1", "accelerate": "0.21.0", "torch": "2.9.0"}
NEWEST = {"transformers": "5.23.0", "accelerate": "1.15.0", "torch": "2.15.0"}

Make = Callable[[dict[str, str]], Path]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A process whose search path holds these packages and no others, and has loaded none of them."""
    monkeypatch.setattr(beside, "FOLDER", tmp_path / "beside")
    monkeypatch.setattr(beside, "PACKAGES", tmp_path / "beside" / "packages")
    monkeypatch.setattr(beside, "REFUSAL", tmp_path / "beside" / "failed.txt")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    for name in list(sys.modules):
        if name.partition(".")[0] in ("diffusers", "peft", "smartcrop", "transformers", "accelerate", "torch"):
            monkeypatch.delitem(sys.modules, name)

    def make(packages: dict[str, str]) -> Path:
        for name, version in packages.items():
            write_installed(tmp_path / "site-packages", name, version)
        return tmp_path / "site-packages"

    yield make
    sys.modules.pop("smartcrop", None)  # the one that was made here


def put(*requirements: str) -> None:
    for requirement in requirements:
        write_installed(beside.PACKAGES, *requirement.split("=="))


def test_nothing_is_missing_here() -> None:
    assert beside.missing() == "", "these tests run where the engine's do"


@pytest.mark.parametrize(
    "packages",  # pairs that were run (HOSTS: A1111, Forge, reForge, newest)
    [
        {"diffusers": "0.31.0", "peft": "0.13.2", **A1111},
        {"diffusers": "0.35.2", "peft": "0.13.2", **A1111},
        {"diffusers": "0.32.2", "peft": "0.14.0", **REFORGE},
        {"diffusers": "0.42.1", "peft": "0.21.2", **NEWEST, "torch": "2.13.0+cpu"},
    ],
)
def test_a_host_that_has_all_lacks_nothing(host: Make, packages: dict[str, str]) -> None:
    host({"smartcrop": "0.5.0", **packages})
    assert beside.lacking() == []
    assert beside.missing() == ""
    before = list(sys.path)
    beside.ready()
    assert sys.path == before, "a folder that is not needed is not looked into"


@pytest.mark.parametrize(
    ("packages", "told"),
    [
        ({"peft": "0.14.0", **A1111}, "peft 0.14.0 was found in {site}, but it cannot be imported beside transf"),
        ({"peft": "0.15.2", **REFORGE}, "but it cannot be imported beside accelerate 0.21.0"),
        ({"peft": "0.21.2", **A1111}, "but it cannot be imported beside transformers 4.30.2"),
        ({"peft": "0.12.0", **A1111}, "peft 0.12.0 was found in {site}, but a training works with 0.13 to 0.21"),
        ({"diffusers": "0.25.1", **A1111}, "but a training works with 0.30 to 0.42"),
        ({"diffusers": "0.43.0.dev0", **NEWEST}, "but a training works with 0.30 to 0.42"),
        ({"diffusers": "0.36.0", **A1111}, "but it cannot be imported beside torch 2.1.2"),
        ({"diffusers": "0.37.1", **A1111, "torch": "2.3.1"}, "but it cannot be imported beside transformers 4.30.2"),
    ],
)  # fmt: skip
def test_a_version_that_breaks_is_told_before_it_is_imported(host: Make, packages: dict[str, str], told: str) -> None:
    site = host(packages)
    put("diffusers==0.31.0", "peft==0.13.2")
    with pytest.raises(PlainError) as caught:
        beside.ready()
    assert told.format(site=site) in str(caught.value)
    assert "switch off the extension that brings it" in str(caught.value), "it is not in this Python's own folder"
    assert "lacks" not in str(caught.value)
    assert sys.path == [str(site)]


def test_one_in_the_hosts_own_environment_is_cured_by_a_command(host: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    site = host({"peft": "0.17.1", "diffusers": "0.31.0", **A1111})
    monkeypatch.setattr(sys, "prefix", str(site.parent))
    assert f'run "{sys.executable}" -m pip install --no-deps peft==0.13.2, or' in beside.missing()


def test_what_another_extension_has_loaded_counts_first(host: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    site = host({"diffusers": "0.31.0", "peft": "0.13.2", **A1111})
    theirs = ModuleType("peft")
    theirs.__version__ = "0.9.0"  # type: ignore[attr-defined]
    theirs.__file__ = "/extensions/other/libraries/peft/__init__.py"
    monkeypatch.setitem(sys.modules, "peft", theirs)
    assert beside.missing() == (
        f"peft 0.9.0 was found in {Path('/extensions/other/libraries')}, but a training works with 0.13 to 0.21: "
        "switch off the extension that brings it, and restart the WebUI."
    )
    theirs.__version__ = "0.17.1"  # type: ignore[attr-defined]
    assert beside.missing() == "", "one that was imported can be"
    assert site.is_dir()


def test_what_is_missing_is_told_with_how_to_get_it(host: Make) -> None:
    host({"diffusers": "0.32.2", **A1111})
    assert beside.lacking() == ["peft==0.13.2", "smartcrop==0.5.0"]
    told = beside.missing()
    assert told.startswith("A training needs peft, which this WebUI lacks: start it once while there is a network")
    assert f'"{sys.executable}" "{beside.EXTENSION / "install.py"}" beside.' in told
    beside.FOLDER.mkdir()
    beside.REFUSAL.write_text("the package index was not reached.\n", encoding="utf-8")
    assert beside.missing() == f"{told} The last attempt failed: the package index was not reached."


def test_the_folder_is_found_after_everything_else(host: Make, tmp_path: Path) -> None:
    site = host({"diffusers": "0.32.2", **A1111})
    put("diffusers==0.31.0", "peft==0.13.2")
    assert find_spec("peft") is None
    beside.ready()
    beside.ready()
    assert sys.path == [str(site), str(beside.PACKAGES)], "once, at the end"
    assert _place("peft") == beside.PACKAGES
    assert _place("diffusers") == site, "the host's own wins"
    write_installed(tmp_path / "other", "peft", "0.16.0")
    sys.path.insert(0, str(tmp_path / "other"))
    assert _place("peft") == tmp_path / "other", "and so does what another extension brings"


def test_a_package_that_is_not_whole_is_not_there(host: Make) -> None:
    host(A1111)
    put("diffusers==0.31.0", "peft==0.13.2")
    assert beside.installed() == ["diffusers==0.31.0", "peft==0.13.2"]
    assert beside.missing() == ""
    (beside.PACKAGES / "peft" / "content.py").write_text("", encoding="utf-8")
    assert beside.installed() == ["diffusers==0.31.0"]
    assert beside.missing().startswith("A training needs peft, which")
    shutil.rmtree(beside.PACKAGES / "diffusers")
    assert beside.missing().startswith("A training needs diffusers and peft, which")


def test_what_only_an_option_needs_keeps_no_training_from_starting(host: Make) -> None:
    site = host({"smartcrop": "0.4.0", **A1111})
    put("diffusers==0.31.0", "peft==0.13.2")
    assert beside.missing() == ""
    assert beside.lacking() == ["diffusers==0.31.0", "peft==0.13.2"], "the host's own stays, whichever it is"
    shutil.rmtree(site)
    assert beside.lacking()[-1] == "smartcrop==0.5.0"
    assert beside.missing() == ""
    beside.bring_optional()
    assert find_spec("smartcrop") is None
    put("smartcrop==0.5.0")
    beside.bring_optional()
    assert _place("smartcrop") == beside.PACKAGES
    assert sys.path == [str(site)], "diffusers and peft come with the first training, not before"


def test_another_version_beside_is_not_the_one_that_was_tried(host: Make) -> None:
    host(A1111)
    put("diffusers==0.31.0", "peft==0.12.0")
    assert beside.missing().startswith("A training needs peft, which")


def _place(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]
