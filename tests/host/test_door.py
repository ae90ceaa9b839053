"""The extension in the WebUI's hands: started, reloaded, half installed, and beside another that brings its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.builders.hosted import write_hosted
from tests.builders.runs import write_pictures
from tests.builders.wheels import write_installed
from tests.host.webui import ROOT, Refused, WebUI, prepare, surroundings

pytestmark = pytest.mark.host

# Another extension, which looks at the process that it shares with ours; `{bring}` is what it does when it is loaded.
OTHER = """
import sys
from modules import script_callbacks, shared
{bring}

def started(_, app):
    app.add_api_route("/other/loaded", loaded)
    app.add_api_route("/other/reload", reload, methods=["POST"])

def loaded():
    names = ("diffusers", "peft", "lora_trainer.jobs.run")
    return {{name: getattr(sys.modules[name], "__version__", "") for name in names if name in sys.modules}}

def reload():
    shared.state.request_restart()  # what the button "Reload UI" does

script_callbacks.on_app_started(started)
"""


class Bare(WebUI):
    """A server that is up when its page is; no model needs to be loaded for it."""

    def _wait_until_up(self, loads: bool) -> None:
        self.wait_for("/other/loaded")

    def notice(self) -> str:
        """What stands in our tab instead of the page; empty if the page does."""
        return "".join(
            part["props"]["value"] for part in self.parts() if part["props"].get("elem_id") == "lt_notice"
        )  # fmt: skip

    def parts(self) -> list[dict[str, Any]]:
        return self.get("/config")["components"]

    def elem_ids(self) -> list[str]:
        return [str(part["props"].get("elem_id")) for part in self.parts()]


@pytest.fixture
def started(request: pytest.FixtureRequest, python: Path, tmp_path: Path) -> Any:
    """Starts a server with our extension and another one."""

    @contextmanager
    def start(*, bring: str = "", without_packages: bool = False) -> Iterator[Bare]:
        data = prepare(tmp_path / "data")
        write_hosted(data / "models" / "Stable-diffusion" / "sd1.safetensors", "sd1", seed=1)
        write_pictures(data / "pictures")
        other = data / "extensions" / "other" / "scripts" / "other.py"
        other.parent.mkdir(parents=True)
        other.write_text(OTHER.format(bring=bring), encoding="utf-8")
        if without_packages:
            ours = data / "extensions" / "lora-trainer"
            ours.unlink()
            for part in ("lora_trainer", "scripts", "javascript", "style.css", "install.py", "metadata.ini"):
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                ours.mkdir(exist_ok=True)
                copy(ROOT / part, ours / part)
        folder = Path(request.config.getoption("--webui"))
        server = Bare(folder, python, data, "--ckpt", "sd1.safetensors", "--skip-load-model-at-start")
        try:
            yield server
        finally:
            server.stop()

    return start


def small(server: Bare) -> dict[str, Any]:
    return {"data.folder": str(server.data / "pictures"), "data.resolution": 64, "network.rank": 4, "train.steps": 3}


def test_the_tab_costs_the_start_little_and_loads_nothing_heavy(started: Any) -> None:
    with started() as server:
        assert server.get("/other/loaded") == {}, "the engine is imported when the first training asks for it"
        assert {"tab_lora_trainer", "lt_start", "setting_lora_trainer_data_roots"} <= set(server.elem_ids())
        assert server.notice() == ""
        records = server.get("/internal/profile-startup")["records"]
        ours = {name: seconds for name, seconds in records.items() if name.endswith("/lora_trainer_tab.py")}
        assert set(ours) == {"load scripts/lora_trainer_tab.py", "app_started_callback/lora_trainer_tab.py"}
        assert sum(ours.values()) < 0.5, ours
        assert server.get("/lora_trainer/v1/jobs") == {"jobs": []}
        assert "Error executing callback" not in server.log
        assert "Error loading script" not in server.log


def test_a_training_outlives_reload_ui(started: Any) -> None:
    with started() as server:
        id = server.post("/lora_trainer/v1/jobs", small(server) | {"train.steps": 5000})["id"]
        before = server.wait(id, step=2)["step"]
        server.post("/other/reload")
        while "Restarting UI" not in server.log or server.log.count("Startup time:") < 2:
            server.wait_for("/other/loaded")
        after = server.wait(id, step=before + 2)
        assert after["state"] == "running"
        assert "lt_start" in server.elem_ids()
        server.post(f"/lora_trainer/v1/jobs/{id}/stop")
        assert Path(server.wait(id, "stopped")["files"][-1]).is_file()


def test_missing_packages_are_told_in_the_tab_and_by_the_routes(started: Any) -> None:
    with started(without_packages=True) as server:
        assert "A training needs diffusers and peft, which this WebUI lacks" in server.notice()
        assert "tab_lora_trainer" in server.elem_ids()
        assert len(server.draw().getcolors(1 << 16) or []) > 1, "the WebUI is as usable as without us"
        with pytest.raises(Refused) as refused:
            server.post("/lora_trainer/v1/jobs", small(server))
        assert refused.value.status == 422
        assert "A training needs diffusers and peft" in json.dumps(refused.value.body)


def test_an_extension_with_an_unusable_peft_is_named_and_goes_on(started: Any, tmp_path: Path) -> None:
    libraries = write_installed(tmp_path / "libraries", "peft", "0.9.0").parent
    with started(bring=f"sys.path.insert(0, {str(libraries)!r})\nimport peft") as server:
        assert f"peft 0.9.0 was found in {libraries}, but a training works with 0.13 to 0.2" in server.notice()
        with pytest.raises(Refused) as refused:
            server.post("/lora_trainer/v1/jobs", small(server))
        assert "switch off the extension that brings it" in json.dumps(refused.value.body)
        assert server.get("/other/loaded") == {"peft": "0.9.0"}


def test_an_extension_with_its_own_usable_packages_is_not_disturbed(started: Any, tmp_path: Path) -> None:
    libraries = tmp_path / "libraries"
    shutil.copytree(ROOT / "beside" / "packages", libraries)
    for name, version in (("diffusers", "0.31.0"), ("peft", "0.13.2")):  # told apart from ours by what they say
        init = libraries / name / "__init__.py"
        text = init.read_text(encoding="utf-8")
        assert f'__version__ = "{version}"' in text
        init.write_text(text.replace(f'"{version}"', f'"{version}.post1"'), encoding="utf-8")
    with started(bring=f"sys.path.insert(0, {str(libraries)!r})\nimport diffusers, peft") as server:
        assert server.notice() == ""
        id = server.post("/lora_trainer/v1/jobs", small(server))["id"]
        server.wait(id)
        loaded = server.get("/other/loaded")
        assert (loaded["diffusers"], loaded["peft"]) == ("0.31.0.post1", "0.13.2.post1"), "one of each, theirs"


def test_the_launcher_runs_the_installer_and_changes_nothing_of_the_hosts(
    request: pytest.FixtureRequest, python: Path, tmp_path: Path
) -> None:
    def freeze() -> str:
        return subprocess.run([python, "-m", "pip", "freeze", "--all"], capture_output=True, text=True,
                              check=True).stdout  # fmt: skip

    ours = tmp_path / "lora-trainer"
    shutil.copytree(ROOT / "lora_trainer", ours / "lora_trainer")
    shutil.copy(ROOT / "install.py", ours)
    before = freeze()
    for offline in ("--no-index", ""):
        launcher = f"import launch; launch.run_extension_installer({str(ours)!r})"
        surrounding = surroundings() | ({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""} if offline else {})
        done = subprocess.run([python, "-c", launcher], cwd=request.config.getoption("--webui"), env=surrounding,
                              capture_output=True, text=True, check=True)  # fmt: skip
        if offline:
            assert "which starts without: the package index was not reached" in done.stdout
    assert sorted(path.name for path in (ours / "beside").iterdir()) == ["packages"], done.stdout
    assert freeze() == before
