"""Runs a training many times and kills it with SIGKILL at a different moment each time, then resumes it.

    python -m tests.builders.killed FOLDER

A process of its own that imports everything once and then forks, so that each killed run costs no new start; it never
computes anything itself, because OpenMP's threads do not survive a fork. Prints one line for each moment: the moment
and the SHA-256 of the LoRA that the resumed run wrote.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lora_trainer.contracts import Stepped
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.run import Controls, run
from tests.builders.runs import run_all, small_run

STEPS = 7


def main(folder: Path) -> None:
    """Compare one uninterrupted run with runs killed in a step, before a rename, and in the middle of a file."""
    _in_child(lambda: _train(folder, "whole"))
    print("uninterrupted", _digest(folder, "whole"), flush=True)
    moments = [("step", _die_after_step, (1, 3, 6)), ("rename", _die_at_rename, (1, 2, 3, 4, 6))]
    moments.append(("fsync", _die_at_fsync, (2, 3)))
    for kind, job, counts in moments:
        for count in counts:
            _killed(folder, f"{kind}{count}", partial(job, folder, count))


def _killed(folder: Path, moment: str, job: Callable[[str], None]) -> None:
    status = _in_child(lambda: job(moment))
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise SystemExit(f"{moment}: the run ended before it could be killed")
    status = _in_child(lambda: _train(folder, moment, resume=True))
    if status != 0:
        raise SystemExit(f"{moment}: the resumed run failed")
    print(moment, _digest(folder, moment), flush=True)


def _in_child(job: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job()
            code = 0
        finally:
            os._exit(code)  # no clean-up of the parent's: pytest's, logging's
    return os.waitpid(child, 0)[1]


def _config(folder: Path, name: str):
    return small_run(folder, train__steps=STEPS, output__directory=str(folder / name / "lora"))


def _train(folder: Path, name: str, resume: bool = False) -> None:
    run_all(_config(folder, name), resume=resume)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_after_step(folder: Path, step: int, name: str) -> None:
    for event in run(_config(folder, name), host=Standalone(), control=Controls()):
        if isinstance(event, Stepped) and event.step == step:
            _die()


def _die_at_rename(folder: Path, count: int, name: str) -> None:
    """Everything is written to a temporary name, and the last moment before it counts never comes."""
    _die_at(os, "replace", count)
    _train(folder, name)


def _die_at_fsync(folder: Path, count: int, name: str) -> None:
    """The data may or may not be on the disk."""
    _die_at(os, "fsync", count)
    _train(folder, name)


def _die_at(module: object, name: str, count: int) -> None:
    real, calls = getattr(module, name), 0

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == count:
            _die()
        return real(*args, **kwargs)

    setattr(module, name, counted)


def _digest(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / name / "lora" / "lora.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
