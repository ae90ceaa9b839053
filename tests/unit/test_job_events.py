"""The events of a job: numbers, bounds, and what is left of them in a file."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from lora_trainer.contracts import (
    Event,
    Finished,
    Prepared,
    Sampled,
    Saved,
    Skipped,
    Started,
    Stepped,
    Told,
)
from lora_trainer.jobs.events import FRESH, MOST, EventLog, event_of, plain

EVENTS: list[Event] = [
    Told("Ein <b>Wort</b> \udc80", "warning"),
    Prepared("latents", 3, 7),
    Started(2, 9),
    Stepped(3, 9, 0.25, {"unet": 1e-4, "text_encoder": 5e-5}, 0.5, 1.5, 2**40),
    Saved(3, Path("/a/b.safetensors"), final=False),
    Sampled(3, (Path("/a/1.png"), Path("/a/2.png")), ("one", "two")),
    Finished("stopped", 3, None, "Stopped."),
    Finished("done", 9, Path("/a/b.safetensors"), "Done."),
]


def step(number: int) -> Stepped:
    return Stepped(number, 10**6, 1 / number, {"unet": 1e-4}, 0.1, 0.01, 0)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_its_file(event):
    assert event_of(json.loads(json.dumps(plain(event), allow_nan=False))) == event


def test_a_loss_that_is_no_number_is_null_in_the_file_and_no_number_again_after_it():
    written = plain(Skipped(4, 9, math.inf, 1))
    assert written == {"kind": "skipped", "step": 4, "steps": 9, "loss": None, "in_a_row": 1}
    assert math.isnan(event_of(written).loss)


@pytest.mark.parametrize("foreign", [{}, {"kind": "odd"}, {"kind": "started", "step": 1}])
def test_what_is_no_event_is_refused(foreign):
    with pytest.raises((KeyError, TypeError)):
        event_of(foreign)


def test_of_a_very_long_run_the_course_and_everything_said_is_kept():
    log = EventLog()
    log.add(Started(0, 100_000), 0.0)
    for number in range(1, 100_001):
        log.add(step(number), float(number))
        if number % 1000 == 0:
            log.add(Saved(number, Path(f"{number}.safetensors"), final=False), float(number))
    kept = log.everything()
    assert len(kept) <= MOST
    assert [item.n for item in kept] == sorted({item.n for item in kept})
    assert log.last == kept[-1].n == 100_101
    assert isinstance(kept[0].event, Started)
    steps = [item.event.step for item in kept if isinstance(item.event, Stepped)]
    newest = [item.event for item in kept[-FRESH:] if isinstance(item.event, Stepped)]
    assert [event.step for event in newest] == list(range(100_001 - len(newest), 100_001)), "none of the newest is gone"
    assert steps[0] < 200
    assert max(b - a for a, b in pairwise(steps)) < 200, "the whole graph has 500 points at least"
    assert sum(isinstance(item.event, Saved) for item in kept) == 100


def test_a_run_that_only_saves_stays_in_bounds():
    log = EventLog()
    for number in range(3 * MOST):
        log.add(Saved(number, Path("x.safetensors"), final=False), 0.0)
    assert MOST // 2 < len(log.everything()) <= MOST
    assert log.everything()[-1].n == 3 * MOST


def test_of_a_preparation_the_newest_count_is_kept_under_a_new_number():
    log = EventLog()
    for done in range(1, 6):
        log.add(Prepared("latents", done, 5), 0.0)
    log.add(Prepared("captions", 1, 1), 0.0)
    assert [(item.n, item.event.what, item.event.done) for item in log.everything()] == [
        (5, "latents", 5), (6, "captions", 1),
    ]  # fmt: skip


def test_what_came_after_a_number_is_found_where_numbers_are_missing():
    log = EventLog()
    for number in range(1, MOST + 2):
        log.add(step(number), 0.0)
    numbers = [item.n for item in log.everything()]
    assert numbers[:3] == [2, 4, 6]
    assert [item.n for item in log.after(1, 2)] == [2, 4]
    assert [item.n for item in log.after(4, 2)] == [6, 8]
    assert log.after(numbers[-1], 10) == []
    assert EventLog(log.everything(), last=10**6).last == 10**6
