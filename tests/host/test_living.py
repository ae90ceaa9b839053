"""Turns, progress bar, Interrupt (section 3), by the adapter alone."""

from __future__ import annotations

import pytest

from tests.host.webui import WebUI

pytestmark = pytest.mark.host


def test_whoever_waits_is_next(sd1: WebUI) -> None:
    """Three threads ask during our third turn; each waits for a turn or two of ours, not for all of them."""
    found = sd1.inside("turns", count=30)
    assert sorted(found["waited"])[0] <= 1
    assert sorted(found["waited"])[-1] <= 4
    assert found["contended"][0] is False
    assert any(found["contended"])
    assert found["contended"][-1] is False


def test_interrupt_is_believed_after_a_moment(sd1: WebUI) -> None:
    assert sd1.inside("pressed") == [False, True]


def test_an_interrupt_left_by_a_generation_is_not_ours(sd1: WebUI) -> None:
    assert sd1.inside("pressed", before=True) == [False, False]


def test_reload_ui_is_not_an_interrupt(sd1: WebUI) -> None:
    pages = sd1.log.count("Startup time:")
    assert sd1.inside("pressed", reload=True) == [False, False]
    sd1.wait_for_new_page(pages)
    assert sd1.inside("pressed") == [False, True]  # and afterwards the button works again


def test_paths_are_the_hosts(sd1: WebUI) -> None:
    found = sd1.inside("paths")
    assert found["loras"] == str(sd1.data / "models" / "Lora")
    assert found["runs"] == str(sd1.data / "lora_trainer" / "runs")
    assert str(sd1.data / "models" / "Stable-diffusion") in found["checkpoints"]
    assert str(sd1.data) in found["allowed"]
    sd1.inside("set_roots", lines="/pictures\n\n  /more pictures ")
    assert {"/pictures", "/more pictures"} <= set(sd1.inside("paths")["allowed"])
    sd1.inside("set_roots", lines="")


def test_captions_and_a_generation_take_turns(as_before: WebUI) -> None:
    """A generation that is asked for during a batch comes after it and before the next; then all is as before."""
    found = as_before.inside("captioned", pictures=6)
    assert found["locked"] == [True] * 6
    assert found["order"].index("generation") in (2, 3)
    assert found["order"].count("captions") == 6
    assert found["bars"] == [f"LoRA Trainer: captions {done} of 6" for done in range(1, 7)]
    assert found["outcome"] == "done"
