"""torch.compile: kept where it pays, taken off again and told where it does not or fails."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora_trainer.contracts import Stepped, Told
from lora_trainer.train import compiling
from lora_trainer.train.compiling import try_compiled
from lora_trainer.train.control import Controls
from tests.builders.runs import run_all, small_run


class Block(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x + 1


def compiled_to(seconds: float | Exception) -> Callable[..., Any]:
    """Stands for torch.compile: the same function in another time, or a compiler's fault at its first call."""

    def compile(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(x: torch.Tensor) -> torch.Tensor:
            if isinstance(seconds, Exception):
                raise seconds
            time.sleep(seconds)
            return x + 1

        return call

    return compile


@pytest.mark.parametrize(("seconds", "stays", "words"), [
    (0.0, True, "The model is compiled: it is faster so."),
    (0.05, False, "not compiled: a step takes"),
    (RuntimeError("no C++ compiler"), False, "not compiled: RuntimeError: no C++ compiler."),
    (FileNotFoundError(2, "No such file or directory", "cl"), False, "not compiled: [Errno 2] No such file"),
], ids=["faster", "slower", "fails", "no compiler"])  # fmt: skip
def test_it_is_kept_where_it_pays(monkeypatch: pytest.MonkeyPatch, seconds: Any, stays: bool, words: str):
    monkeypatch.setattr(torch, "compile", compiled_to(seconds))
    block = Block(0.02)
    told = list(try_compiled([block], lambda: block(torch.ones(1)), nullcontext, Controls(), torch.device("cpu")))
    assert [type(event) for event in told] == [Told]
    assert words in told[0].text
    assert (block._compiled_call_impl is not None) == stays
    assert block(torch.ones(1)).item() == 2


def test_an_old_torch_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(nn.Module, "compile")
    (told,) = try_compiled([], lambda: None, nullcontext, Controls(), torch.device("cpu"))
    assert "is too old for it" in told.text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with a C++ compiler")
def test_a_run_is_the_same_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Really compiled, and kept whatever it brings, the losses are the same but for rounding."""
    plain = run_all(small_run(tmp_path, train__steps=2))
    monkeypatch.setattr(compiling, "PAYS", 1000.0)
    monkeypatch.setattr("lora_trainer.jobs.image_run.repeated_blocks", _first_block)
    with_it = run_all(small_run(tmp_path, train__steps=2, train__compile=True, output__directory=str(tmp_path / "c")))
    assert any("The model is compiled" in event.text for event in with_it if isinstance(event, Told))
    losses, others = ([e.loss for e in events if isinstance(e, Stepped)] for events in (plain, with_it))
    assert others == pytest.approx(losses, rel=1e-3)


def _first_block(unet: nn.Module) -> list[nn.Module]:
    """One is enough to try, and takes a tenth of the time."""
    from lora_trainer.families.unet import repeated_blocks

    return repeated_blocks(unet)[:1]
