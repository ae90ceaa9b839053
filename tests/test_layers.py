"""Who may import what, as a rule that is kept: each room of the house names the rooms and packages it may touch.

Imports are read from the source, so that those inside functions, in `try`, for annotations only and by
`importlib.import_module("...")` count too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lora_trainer"

HOST = {"modules", "modules_forge", "backend", "ldm", "ldm_patched", "sgm", "k_diffusion", "launch", "networks"}
EVERY_ROOM_BUT_DOORS = {
    "config", "weights", "families", "networks", "data", "captioners", "train", "jobs", "hosts", "demo",
}  # fmt: skip


class May(NamedTuple):
    """What a room may import besides itself, `contracts` and the standard library."""

    rooms: set[str]
    packages: set[str]


# The longest matching folder decides. A room that is not here yet may import nothing: name it, with its reasons.
TABLE = {
    "scripts": May({"hosts", "interfaces"}, {"modules"}),
    "install.py": May({"hosts"}, set()),  # one list of what is put beside a host and of what is looked for there
    f"{PACKAGE}/__init__.py": May(set(), set()),
    f"{PACKAGE}/__main__.py": May({"interfaces"}, set()),
    f"{PACKAGE}/contracts.py": May(set(), {"torch", "PIL"}),  # for annotations
    f"{PACKAGE}/config": May(set(), {"yaml"}),
    f"{PACKAGE}/weights": May(set(), {"torch", "safetensors", "numpy", "huggingface_hub"}),  # its faults, in words
    f"{PACKAGE}/families": May(
        {"config", "weights"},
        # gguf, bitsandbytes: other forms of a language model's weights; huggingface_hub: one that is to be fetched
        {"torch", "diffusers", "transformers", "tokenizers", "open_clip", "ftfy", "safetensors", "yaml", "PIL",
         "gguf", "bitsandbytes", "huggingface_hub"},
    ),
    f"{PACKAGE}/networks": May({"config", "weights"}, {"torch", "peft", "safetensors"}),  # weights: to write its files
    # pyarrow: Parquet files; jinja2: chat templates; regex: expressions of users, which re could not stop
    f"{PACKAGE}/data": May(
        {"config"}, {"PIL", "numpy", "torch", "safetensors", "pyarrow", "jinja2", "regex", "smartcrop"}
    ),
    f"{PACKAGE}/captioners": May(  # weights: to read the files of its models without running what is in them
        {"config", "weights"},
        {"torch", "transformers", "PIL", "numpy", "open_clip", "torchvision", "onnxruntime", "huggingface_hub"},
    ),
    # psutil is of accelerate's own; the optional ones: optimizers, each imported when it is asked for
    f"{PACKAGE}/train": May(
        {"config"},
        {"torch", "accelerate", "transformers", "bitsandbytes", "prodigyopt", "schedulefree", "lion_pytorch",
         "came_pytorch", "psutil"},
    ),
    f"{PACKAGE}/jobs": May(
        EVERY_ROOM_BUT_DOORS, {"torch", "diffusers", "safetensors", "tensorboard", "PIL", "numpy", "accelerate",
                              "transformers"}  # transformers: its release, in messages
    ),
    # starlette: who may use our routes; PIL: two of the host's pictures compared; huggingface_hub: what its cache holds
    f"{PACKAGE}/hosts": May(
        {"config", "weights", "families"}, {"torch", "accelerate", "PIL", "starlette", "huggingface_hub", *HOST}
    ),
    # fastapi and those beside it: for the types of the WebUI's application, and for the server of our own
    f"{PACKAGE}/interfaces": May({"config", "jobs", "hosts", "demo"}, {"tqdm", "fastapi", "starlette", "uvicorn"}),
    f"{PACKAGE}/interfaces/ui": May({"config", "jobs", "hosts", "interfaces"}, {"gradio", "fastapi"}),
    f"{PACKAGE}/interfaces/api": May({"config", "jobs", "hosts", "interfaces"}, {"fastapi", "starlette"}),
    f"{PACKAGE}/demo": May(
        EVERY_ROOM_BUT_DOORS,
        {"torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "yaml", "tqdm"},
    ),
}


def test_every_room_imports_only_what_it_may() -> None:
    assert list(breaches(ROOT)) == []


def test_the_rule_has_something_to_judge() -> None:
    judged = {place_of(file.relative_to(ROOT)) for file in sources(ROOT)}
    assert {f"{PACKAGE}/config", f"{PACKAGE}/train", f"{PACKAGE}/interfaces", "install.py"} <= judged


@pytest.mark.parametrize(
    ("file", "code", "caught"),
    [
        ("config/a.py", "import torch", "torch"),
        ("train/a.py", "from lora_trainer.networks.lora import inject", "lora_trainer.networks"),
        ("train/a.py", "def f():\n    import gradio", "gradio"),
        ("data/a.py", "try:\n    from modules import shared\nexcept ImportError:\n    pass", "modules"),
        ("weights/a.py", "from ..families import registry", "lora_trainer.families"),
        ("weights/a.py", "from lora_trainer import families", "lora_trainer.families"),
        ("networks/a.py", "import importlib\nimportlib.import_module('lora_trainer.train.loop')", "lora_trainer.train"),
        ("interfaces/a.py", "from lora_trainer.train.control import Controls", "lora_trainer.train"),
        ("interfaces/api/a.py", "import gradio", "gradio"),
        ("jobs/a.py", "from lora_trainer.interfaces import cli", "lora_trainer.interfaces"),
        ("families/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import accelerate", "accelerate"),
        ("contracts.py", "from lora_trainer.config.options import RunConfig", "lora_trainer.config"),
        ("attic/a.py", "import torch", "torch"),
    ],
)
def test_a_breach_is_caught(tmp_path: Path, file: str, code: str, caught: str) -> None:
    _write(tmp_path, file, code)
    (breach,) = breaches(tmp_path)
    assert breach.endswith(f"may not import {caught}")


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("jobs/a.py", "import os.path\nimport torch\nfrom lora_trainer.train import loop"),
        ("train/a.py", "from . import loop\nfrom lora_trainer.contracts import Event\nimport torch.nn"),
        ("interfaces/ui/a.py", "import gradio as gr\nfrom lora_trainer.config.surfaces import leaves"),
        ("hosts/a.py", "def lend():\n    from modules import shared"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, file: str, code: str) -> None:
    _write(tmp_path, file, code)
    assert list(breaches(tmp_path)) == []


def test_no_function_is_longer_than_a_hundred_lines() -> None:
    long = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for file in sources(ROOT)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 100
    ]
    assert long == []


def test_nothing_is_called_after_nothing() -> None:
    nameless = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert [str(file) for file in sources(ROOT) if file.name in nameless] == []


def _write(root: Path, file: str, code: str) -> None:
    path = root / PACKAGE / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")


# --- reading ---------------------------------------------------------------------------------------------------------


def sources(root: Path) -> Iterator[Path]:
    """Every source file that the table speaks of."""
    for place in (PACKAGE, "scripts"):
        yield from sorted((root / place).rglob("*.py"))
    yield from sorted(root.glob("*.py"))


def place_of(file: Path) -> str:
    """The row of the table that a file, relative to the root, falls under; its own path if there is none."""
    rows = [place for place in TABLE if file.as_posix() == place or file.as_posix().startswith(f"{place}/")]
    return max(rows, key=len, default=file.as_posix())


def breaches(root: Path) -> Iterator[str]:
    """A line for each import that the table does not allow."""
    for file in sources(root):
        place = place_of(file.relative_to(root))
        may = TABLE.get(place, May(set(), set()))
        own = file.relative_to(root / PACKAGE).parts[0] if file.is_relative_to(root / PACKAGE) else ""
        for line, name in imported(file, root):
            top, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if top == PACKAGE:
                allowed = room in may.rooms | {own, "contracts", "", "__version__"}
                told = f"{PACKAGE}.{room}"
            else:
                allowed = top in sys.stdlib_module_names or top in may.packages
                told = top
            if not allowed:
                yield f"{file.relative_to(root)}:{line}: {place} may not import {told}"


def imported(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; relative ones resolved."""
    here = file.relative_to(root).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: -node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))
