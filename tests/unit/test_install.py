"""The script that a newcomer runs first, and that a WebUI runs at each start."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["install"] = module
    spec.loader.exec_module(module)
    return module


def test_a_host_that_calls_it_at_start_notices_nothing() -> None:
    done = subprocess.run([sys.executable, ROOT / "install.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_lists_agree_with_the_project_file(install: ModuleType) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = r"^(dependencies|ui|optimizers|dev) = \[(.*?)\](?: #.*?)?$"
    lists = dict(re.findall(listed, text, re.MULTILINE | re.DOTALL))
    project = {name: re.findall(r'"([^"]+)"', inside) for name, inside in lists.items()}
    loose = [line for line in install.RUN if line != install.TORCH]
    assert {line for line in project["dependencies"] if not line.startswith("torch>")} == {*loose, *install.ALONE}
    assert set(project["ui"]) == {*install.UI}
    assert set(project["text"]) == {*install.TEXT}
    assert set(project["optimizers"]) - {*install.OPTIMIZERS} == {"bitsandbytes>=0.45"}
    assert set(project["dev"]) == {*install.TEST, *install.LINT}


def test_an_environment_is_complete_when_its_stamp_holds_all_that_is_wanted(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(install, "_pip", lambda environment, words: calls.append(words))
    monkeypatch.setattr(install, "_works", lambda environment: True)

    def make(*wants: str) -> None:
        install._made(install.Environment("newest", tmp_path, wants, install.PYTHONS))

    make("a", "b")
    assert calls == [["a", "b"], ["--no-deps", *install.ALONE]]
    make("a", "b")
    make("a")
    assert len(calls) == 2, "a second call, and one that wants less, install nothing"
    make("a", "b", "c")
    assert len(calls) == 4
    make("a", "b==2")
    assert len(calls) == 6, "another version is wanted"


def test_what_pip_said_last_is_told(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Collecting x\necho ERROR: no wheel of x; exit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(install.Environment, "python", python)
    environment = install.Environment("newest", tmp_path, ("x",), install.PYTHONS)
    with pytest.raises(install.Failure, match=r"(?s)Its last lines were:.*no wheel of x"):
        install._pip(environment, ["x"])


def test_a_python_of_another_age_is_refused_in_words(install: ModuleType, tmp_path: Path) -> None:
    environment = install.Environment("newest", tmp_path, (), ((2, 0),))
    with pytest.raises(install.Failure, match=r"Python 2\.0 is wanted, but this is 3\."):
        install._create(environment)


def test_tests_are_told_from_other_paths(install: ModuleType) -> None:
    tests = ["tests", "tests/unit/test_install.py::test_x", str(ROOT / "tests" / "unit")]
    others = ["-k", "loop", "tests/no_such_file.py", "--webui", str(ROOT), str(Path.home())]
    assert [word for word in (*tests, *others) if install._is_test(word)] == tests


def test_results_are_counted_from_the_report(install: ModuleType, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): 1/0\n@pytest.mark.skip\ndef test_c(): pass\n"
        "@pytest.fixture\ndef broken(): 1/0\ndef test_d(broken): pass\n"
    )
    report = tmp_path / "report.xml"
    subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-p", "no:cacheprovider", tmp_path],
                   capture_output=True, check=False, cwd=tmp_path)  # fmt: skip
    assert install._counts(report) == {"passed": 1, "failed": 2, "skipped": 1}
    outcome = install.Outcome("pytest, newest", "FAILED", 1.0, 1, 2, 1)
    assert install._summary([outcome, install.Outcome("ruff", "passed", 1.0)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 2 failed, 1 skipped"
    assert install._summary([install.Outcome("pytest, newest", "passed", 1.0, 5)]) == 0
