"""docs/api.md: every route is in it, every curl line works, and every answer it shows is of the shape it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the package uvicorn is not installed: a real server is asked here")

from lora_trainer.contracts import Event, Stepped
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.interfaces.api.routes import PREFIX, routes_of
from lora_trainer.jobs.events import KINDS
from lora_trainer.jobs.registry import Registry
from tests.builders.language import write_model
from tests.builders.runs import small_run
from tests.builders.served import Client, application, served

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^### ", PAGE, flags=re.M)[1:]
ORDERS = ("stop", "pause", "resume", "save", "sample")

pytestmark = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def commands(text: str) -> list[str]:
    """The curl lines of a section, each with its continuation."""
    code = "".join(blocks(text, "sh"))
    return re.findall(r"^curl .*?(?=^curl |\Z)", code, flags=re.S | re.M)


def test_every_route_is_in_the_page(tmp_path: Path) -> None:
    heads = [section.partition("\n")[0] for section in SECTIONS]
    documented = set()
    for head in heads:
        verb, first = re.match(r"`(GET|POST) ([^`]+)`", head).groups()  # type: ignore[union-attr]
        others = re.findall(r", `(\w+)`", head)
        documented |= {(verb, first), *((verb, f"{first.rpartition('/')[0]}/{other}") for other in others)}
    routes = routes_of(Registry(Standalone(runs=tmp_path)))
    real = {(verb, path.replace(":path", "")) for path, verbs in routes.items() for verb in verbs}
    assert documented == real


def test_every_kind_of_event_is_in_the_page() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, flags=re.M))
    assert rows.keys() == KINDS.keys()
    for kind, told in rows.items():
        fields = {"images" if name == "paths" else name for name in KINDS[kind].__dataclass_fields__}
        assert fields <= set(re.findall(r"`(\w+)`", told)), kind


def test_every_curl_line_works_and_answers_as_shown(tmp_path: Path) -> None:
    small_run(tmp_path)
    write_model(tmp_path / "llama")
    host = Standalone(runs=tmp_path / "runs", loras=tmp_path / "loras", checkpoints=[tmp_path])
    registry = Registry(host)
    lasting: dict[str, Any] = {
        "train_data_dir": str(tmp_path / "pictures"), "base_model": "sd1", "train.steps": 5000, "resolution": 64,
        "batch_size": 1, "text_encoder_lr": 0, "samples.prompts": ["a cat"], "samples.sampling_steps": 1,
        "samples.every": 5000, "save_steps": 1000, "output_name": "lasting",
    }  # fmt: skip
    done = 0
    with served(application(registry, host)) as address:
        client = Client(address)
        id = client.post("/jobs", lasting)["id"]
        client.until(id, lambda job: job["step"] >= 1)
        picture = next(e for e in client.get(f"/jobs/{id}/events")["events"] if e["kind"] == "sampled")["images"][0]
        given = {"ID": id, "NAME": picture.rpartition("/")[2], **_open_data_set(client, tmp_path / "pictures")}
        client.post(f"/jobs/{id}/save")
        client.until(id, lambda job: job["files"])
        given["UPLOAD"] = client.post("/uploads", {"folder": str(tmp_path / "pictures")})["id"]
        shutil.copy(next((tmp_path / "pictures").glob("*.png")), tmp_path / "1.png")
        for section in SECTIONS:
            shown = [json.loads(block) for block in blocks(section, "json")]
            found = [_run(line, tmp_path, address, given) for line in commands(section)]
            assert found, section
            for example, answer in zip(shown, found, strict=False):
                _same_shape(example, answer, section.partition("\n")[0])
            done += len(found)
        registry.close(60)
    assert done == len(re.findall(r"^curl ", PAGE, flags=re.M)) == 40
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "small.jpg").read_bytes().startswith(b"\xff\xd8")


def _open_data_set(client: Client, folder: Path) -> dict[str, str]:
    """What the lines about data sets name: one that is read, and an image of it with the version of its caption."""
    id = client.post("/datasets", {"folder": str(folder), "trigger": "my_cat"})["id"]
    client.until(id, lambda form: form["state"] == "ready", at="/datasets")
    image = client.get(f"/datasets/{id}/images")["images"][0]
    return {"SET": id, "PICTURE": image["name"], "VERSION": image["version"]}


def _run(line: str, folder: Path, address: str, given: dict[str, str]) -> Any:
    line = line.replace("/data/my_cat", str(folder / "pictures")).replace("/models/llama", str(folder / "llama"))
    line = line.replace('"base_model": "demo"', '"base_model": "sd1"')
    names = " ".join(f"{name}={value}" for name, value in given.items())
    code = f"API={address}{PREFIX} {names}\n{line.strip()} -sS -w '\\n%{{http_code}}'"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=folder, check=True, timeout=60)
    body, _, status = done.stdout.rpartition("\n")
    assert status == "200", (line, done.stdout)
    return json.loads(body) if body else None


def _same_shape(example: Any, answer: Any, where: str) -> None:
    """The same keys and kinds of value, at every depth; a list by its first item."""
    if isinstance(example, dict):
        if where.endswith(("captions_from", "renamed", "thumbs")):
            return None
        assert isinstance(answer, dict), where
        if "n" in example:  # an event
            return _same_shape(example.keys() - {"kind"}, _fields_of(Stepped), where)
        assert list(example) == list(answer), where
        for key, value in example.items():
            _same_shape(value, answer[key], f"{where} {key}")
    elif isinstance(example, list):
        assert isinstance(answer, list), where
        if example and answer:
            _same_shape(example[0], answer[0], where)
    elif isinstance(example, set):
        assert example == answer, where
    elif answer is not None:
        number = (int, float)
        assert isinstance(answer, number if isinstance(example, number) else type(example)), where
    return None


def _fields_of(kind: type[Event]) -> set[str]:
    return {"n", "at", *kind.__dataclass_fields__}
