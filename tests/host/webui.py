"""A real WebUI, started for the tests in a folder of data of its own, with this checkout as an extension."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds for the start, or for a training; on a busy machine either may take a minute
# What a WebUI needs to run on the CPU, without a network and without having been set up by its own launcher.
FLAGS = (
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--no-half", "--precision", "full", "--use-cpu", "all",
    "--no-download-sd-model", "--api", "--disable-nan-check", "--skip-version-check",
)  # fmt: skip


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


class WebUI:
    """One server; `data` holds its models, settings, extensions and outputs."""

    def __init__(self, folder: Path, python: Path, data: Path, *flags: str, loads: bool = True) -> None:
        """Start it, and wait until it answers and (`loads`) has its model."""
        self.folder, self.python, self.data = folder, python, data
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers: dict[str, str] = {}
        self._log = (data / "webui.log").open("ab")
        self._start = len(self.log)  # of this server's lines
        self._process = subprocess.Popen(
            [str(python), "launch.py", "--data-dir", str(data), "--port", str(self.port), *FLAGS, *flags],
            cwd=folder, env=surroundings(), stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            self._wait_until_up(loads)
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        return (self.data / "webui.log").read_text(encoding="utf-8", errors="replace")

    @property
    def process_id(self) -> int:
        return self._process.pid

    def stop(self, *, kill: bool = False) -> None:
        """End it; `kill` as a crash would."""
        if self._process.poll() is None:
            self._process.kill() if kill else self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            self._process.kill()
            self._process.wait()
        self._log.close()

    def get(self, path: str) -> Any:
        """The answer, parsed. Raises Refused."""
        return self._ask(urllib.request.Request(self.url + path, headers=self.headers))

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        """The answer, parsed. Raises Refused."""
        data = json.dumps({} if body is None else body).encode()
        headers = {"Content-Type": "application/json", **self.headers, **headers}
        return self._ask(urllib.request.Request(self.url + path, data, headers, method="POST"))

    def options(self, **values: Any) -> None:
        """Change settings, as its settings page does."""
        self.post("/sdapi/v1/options", values)

    def draw(self, prompt: str = "a red boat", **more: Any) -> Image.Image:
        """One picture by txt2img."""
        order = {"prompt": prompt, "steps": 3, "width": 64, "height": 64, "seed": 5, "cfg_scale": 7, **more}
        return decoded(self.post("/sdapi/v1/txt2img", order)["images"][0])

    def inside(self, check: str, **arguments: Any) -> Any:
        """What a function of tests/host/inside.py returns when called within the server."""
        answer = self.post(f"/host_tests/{check}", arguments)
        if "trace" in answer:
            raise AssertionError(answer["trace"])
        return answer["returned"]

    def traces(self) -> dict[str, Any]:
        """The weights, and what a guest could leave behind; without the copies of weights that a prompt LoRA of the
        WebUI's own may have left, and a training frees."""
        found = self.inside("weights")
        return {name: value for name, value in found.items() if name != "copies"}

    def train(self, **settings: Any) -> str:
        """Submit a small training on the loaded checkpoint; settings are dotted names with "__" for the dot. The id."""
        return self.post("/lora_trainer/v1/jobs", small_training(self.data, settings))["id"]

    def job(self, id: str) -> dict[str, Any]:
        return self.get(f"/lora_trainer/v1/jobs/{id}")

    def wait(self, id: str, *states: str, step: int = 0) -> dict[str, Any]:
        """The job, as soon as it is in one of the states (done, if none is named) or has reached the step."""
        wanted = states or (("done",) if not step else ())
        deadline = time.monotonic() + PATIENCE
        while True:
            job = self.job(id)
            if job["state"] in wanted or (step and job["step"] >= step):
                return job
            assert job["state"] not in ("failed", "done", "stopped"), f"{job}\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"after {PATIENCE} s: {job}\n{self.log[-3000:]}"
            time.sleep(0.1)

    def events(self, id: str, kind: str = "") -> list[dict[str, Any]]:
        found = self.get(f"/lora_trainer/v1/jobs/{id}/events?after=0")["events"]
        return [event for event in found if not kind or event["kind"] == kind]

    def picture(self, path: str) -> Image.Image:
        """A picture that a route serves."""
        request = urllib.request.Request(self.url + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            image = Image.open(io.BytesIO(answer.read()))
        image.load()
        return image

    def lora(self, name: str) -> Path:
        return self.data / "models" / "Lora" / f"{name}.safetensors"

    def reload_page(self) -> None:
        """Press "Reload UI", and wait for the new page."""
        pages = self.log.count("Startup time:")
        self.inside("reload_page")
        self.wait_for_new_page(pages)

    def wait_for_new_page(self, pages: int) -> None:
        """Until more than so many pages were made since the start."""
        deadline = time.monotonic() + PATIENCE
        while self.log.count("Startup time:") <= pages:
            assert time.monotonic() < deadline, f"no new page in {PATIENCE} s:\n{self.log[-3000:]}"
            time.sleep(0.2)
        self.wait_for("/host_tests/ready")

    def wait_for(self, path: str) -> Any:
        """The first answer of a server that starts or reloads."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(Refused, OSError):
                return self.get(path)
            assert self._process.poll() is None, f"the WebUI ended:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"the WebUI did not answer in {PATIENCE} s:\n{self.log[-3000:]}"
            time.sleep(0.3)

    def _wait_until_up(self, loads: bool) -> None:
        deadline = time.monotonic() + PATIENCE
        # Not by asking it: a request that comes while it is set up makes it fail ("Cannot add middleware after ...").
        while "Startup time:" not in self.log[self._start :]:
            assert self._process.poll() is None, f"the WebUI ended:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"the WebUI did not start in {PATIENCE} s:\n{self.log[-3000:]}"
            time.sleep(0.2)
        while (
            self.wait_for("/host_tests/ready").get("returned") is not True and loads
        ):  # the model is loaded in the background
            assert time.monotonic() < deadline, f"no model was loaded in {PATIENCE} s:\n{self.log[-3000:]}"
            time.sleep(0.2)

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return _parsed(answer.read())
        except urllib.error.HTTPError as error:
            raise Refused(error.code, _parsed(error.read())) from error


def prepare(data: Path) -> Path:
    """A folder of data: settings, this checkout and the tests' own door as extensions. Returns it."""
    for name in ("Stable-diffusion", "Lora", "VAE"):
        (data / "models" / name).mkdir(parents=True)
    (data / "extensions").mkdir()
    (data / "extensions" / "lora-trainer").symlink_to(ROOT, target_is_directory=True)
    door = data / "extensions" / "host_tests" / "scripts"
    door.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "host" / "door.py", door)
    settings = {"live_previews_enable": False, "sd_checkpoint_hash": "", "samples_save": False}
    (data / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return data


def surroundings() -> dict[str, str]:
    """The environment of the server, and of a command line that is compared with it: one thread, for equal bits."""
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def small_training(data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The mapping of a training of some seconds on the pictures in `data`."""
    small = {
        "data.folder": str(data / "pictures"), "data.resolution": 64, "data.batch_size": 2, "network.rank": 4,
        "train.steps": 6, "train.learning_rate": 1e-2, "train.seed": 11, "output.save_steps": 0,
        "output.tensorboard": False,
    }  # fmt: skip
    return small | {name.replace("__", "."): value for name, value in settings.items()}


def decoded(picture: str) -> Image.Image:
    """A picture out of the WebUI's answer."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    image.load()
    return image


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
