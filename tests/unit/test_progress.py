"""Events as a person sees them, on a terminal and in a log."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_trainer.contracts import Event, Finished, Prepared, Sampled, Saved, Skipped, Started, Stepped, Told
from lora_trainer.interfaces.progress import exit_code, follow, sentence

LORA = Path("output/a/a.safetensors")


def stepped(step: int, loss: float, steps: int = 200) -> Stepped:
    return Stepped(step, steps, loss, {"unet": 1e-4, "text_encoder": 5e-5}, 0.1, 0.5, 3 * 2**30)


def events() -> Iterator[Event]:
    yield Told("Two pictures have no caption.", "warning")
    yield from (Prepared("latents", done, 20) for done in range(1, 21))
    yield Started(100, 200)
    yield from (stepped(step, 0.25 if step % 2 else 0.75) for step in range(101, 151))
    yield Skipped(151, 200, float("nan"), 1)
    yield Saved(160, Path("output/a/a-000160.safetensors"), False)
    yield Sampled(160, (Path("output/a/160.png"),), ("a cat",))
    yield from (stepped(step, 0.25) for step in range(161, 201))
    yield Finished("done", 200, LORA, f"Done: {LORA}")


def test_why_a_step_was_skipped() -> None:
    assert "a gradient that is no number; skipped (2 in a row)" in sentence(Skipped(3, 9, 0.5, 2))
    assert sentence(Skipped(3, 9, 0.5, 0)).startswith("Step 3 was too large for fp16"), "no warning: the scale cures it"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_where_there_is_no_terminal() -> None:
    log = io.StringIO()
    end = follow(events(), log)
    assert end is not None
    assert exit_code(end) == 0
    lines = log.getvalue().splitlines()
    assert lines[0] == "Warning: Two pictures have no caption."
    assert lines[-1] == f"Done: {LORA}"
    assert len([line for line in lines if line.startswith("Preparing latents")]) == 10
    # Odd steps 0.25, even 0.75: the mean of the last 20 is 0.5. 50 steps of 0.5 seconds are left.
    (line,) = (line for line in lines if line.startswith("step 140/200"))
    assert line == "step 140/200  loss 0.5000  lr 1.00e-04/5.00e-05  mem 3.0 GiB  0.50 s/step  00:30 left"
    assert any(line.startswith("step 101/200") for line in lines), "the first step is told at once"
    assert any(line.startswith("step 200/200  loss 0.2500") for line in lines)
    assert 20 <= len([line for line in lines if line.startswith("step ")]) <= 60
    assert "Saved output/a/a-000160.safetensors at step 160." in lines
    assert "Drew 1 sample at step 160: output/a/160.png" in lines
    assert "Warning: step 151 had the loss nan; skipped (1 in a row)." in lines


def test_a_bar_on_a_terminal() -> None:
    screen = Terminal()
    follow(events(), screen)
    shown = screen.getvalue()
    assert "Preparing latents 100%" in shown
    assert "Training  50%" in shown, "a resumed run starts where it was"
    assert "200/200" in shown
    assert "loss=0.2500" in shown
    assert "mem=3.0 GiB" in shown
    assert f"Done: {LORA}" in shown


def test_only_the_first_of_several_processes_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    log = io.StringIO()
    assert exit_code(follow(events(), log)) == 0
    assert log.getvalue() == ""


@pytest.mark.parametrize(("outcome", "code"), [("done", 0), ("stopped", 130), ("failed", 1)])
def test_the_end_decides_the_exit_code(outcome: str, code: int) -> None:
    assert exit_code(Finished(outcome, 3, None, "")) == code  # pyright: ignore[reportArgumentType]


def test_a_run_that_tells_no_end_has_failed() -> None:
    assert exit_code(follow(iter([Started(0, 1)]), io.StringIO())) == 1


def test_what_was_shown_is_closed_when_the_run_fails() -> None:
    def failing() -> Iterator[Event]:
        yield Started(0, 10)
        yield stepped(1, 0.1, steps=10)
        raise OSError("disk full")

    screen = Terminal()
    with pytest.raises(OSError, match="disk full"):
        follow(failing(), screen)
    assert screen.getvalue().endswith("\n"), "the bar is left on a line of its own"
