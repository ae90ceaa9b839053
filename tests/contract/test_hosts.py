"""What every host adapter promises, held without a WebUI; tests/host holds A1111's to it in the real one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.contracts import Host, LentModel, ModelFacts, PlainError, SampleOrder, Told
from lora_trainer.hosts.a1111 import A1111
from lora_trainer.hosts.standalone import Standalone

ADAPTERS = [Standalone, A1111]
ORDER = SampleOrder(("a red boat",), "", 64, 2, 7.0, 5, 1)
PROMISED = {name: member for name, member in vars(Host).items() if inspect.isfunction(member) and name[0] != "_"}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_promise_is_there_with_the_same_arguments(adapter: type[Any]) -> None:
    assert len(PROMISED) >= 14  # the protocol was read
    for name, promise in PROMISED.items():
        given = inspect.signature(inspect.unwrap(getattr(adapter, name)))
        assert list(given.parameters) == list(inspect.signature(promise).parameters), name
        assert getattr(adapter, name).__doc__, name
    assert isinstance(adapter.name, str)
    assert isinstance(adapter.draws, bool)


@pytest.mark.parametrize("module", ["lora_trainer.hosts.a1111", "lora_trainer.hosts.standalone"])
def test_importing_an_adapter_costs_nothing(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'PIL', 'modules', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- hosts that run here ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[Standalone])
def host(request: pytest.FixtureRequest) -> Host:
    return request.param()


@pytest.fixture
def owned(host: Host) -> LentModel:
    """A model from a file, such as the demo's: every host can be asked for the device to train it on."""
    facts = ModelFacts("sd1", "epsilon", False, "made for the test")
    return LentModel({}, {}, facts, "none", None, owned=True)


def test_a_base_is_a_file_or_lent(host: Host) -> None:
    path = host.base_file("folder/model.safetensors")
    assert path == Path("folder/model.safetensors")
    with pytest.raises(PlainError, match="give base_model"):
        host.lend()


def test_visits_and_turns_end_however_they_end(host: Host, owned: LentModel) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            _fail_in_a_visit(host, owned)
    with host.visit(), host.exclusive(owned, ()):
        pass
    with host.visit(), host.turn():
        pass
    assert not host.interrupted()


def _fail_in_a_visit(host: Host, owned: LentModel) -> None:
    with host.visit():
        for _ in range(2):
            with host.exclusive(owned, ("unet", "vae")):
                assert not host.contended()
            assert not host.contended()
            with host.turn(), host.turn():  # a captioner of the host's takes its turn within ours
                assert not host.contended()
            assert not host.contended()
        with host.turn():
            raise ZeroDivisionError


def test_a_host_that_draws_nothing_says_so(host: Host, owned: LentModel, tmp_path: Path) -> None:
    with host.visit(), host.exclusive(owned, ()):
        assert (host.draw(ORDER, None) is None) is not host.draws
        assert host.prove(tmp_path / "none.safetensors", ORDER) == []
    host.announce(tmp_path / "none.safetensors")
    host.report(Told("nothing"))


def test_paths_and_device_are_told(host: Host) -> None:
    import torch

    assert isinstance(host.device(), torch.device)
    assert host.paths().loras is None
    assert host.paths().allowed is None  # nobody asks from outside
