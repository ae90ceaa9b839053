"""What a run takes at its highest, beside what was said of it: `memory.py CHECKPOINT IMAGES`.

    python tests/bench/memory.py sd15.safetensors IMAGES [--resolution 256] [--batch 1] [--steps 6]
        [--targets attention] [--precision no] [--checkpointing]

The run goes the way that the command line goes. Before its first step the heaviest one is tried and judged; what the
process then really takes is read every few milliseconds to its end, above what it held when that step began, as the
verdict is meant. On CUDA both are torch's own counts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from lora_trainer.config.load import load  # noqa: E402
from lora_trainer.contracts import Judged, Started, Stepped  # noqa: E402
from lora_trainer.hosts.standalone import Standalone, keep_freed_memory  # noqa: E402
from lora_trainer.jobs.run import Controls, run  # noqa: E402
from lora_trainer.train import memory, rehearsal  # noqa: E402

EVERY = 0.002  # seconds between two looks


class Course:
    """The memory of the process (or of torch on the device) while it trains."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = 0  # when the heaviest step was tried
        self.highest = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def now(self) -> int:
        """Bytes in use."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else memory._process_memory()

    def begin(self) -> None:
        """The training's first step begins."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()

    def end(self) -> int:
        """Bytes that the steps took at their highest, above what there was before."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        self._over.set()
        self._thread.join()
        return self.highest - self.before

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self.highest = max(self.highest, self.now())


def main() -> None:
    """Train for some steps into a folder that is thrown away, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--precision", default="no", help="as train.mixed_precision")
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    host = Standalone()
    course = Course(host.device())
    measure = rehearsal.Rehearsal.measure

    def noted(self: Any) -> Any:
        memory.let_go(self.processes.device)
        course.before = course.now()
        return measure(self)

    rehearsal.Rehearsal.measure = noted
    verdict: Judged | None = None
    with tempfile.TemporaryDirectory() as folder:
        config = load(
            {
                "model.base": str(options.checkpoint), "data.folder": str(options.images),
                "data.resolution": options.resolution, "data.batch_size": options.batch, "data.upscale": True,
                "network.rank": 8, "network.targets": options.targets, "train.steps": options.steps,
                "train.text_encoder_learning_rate": 0, "train.mixed_precision": options.precision, "train.seed": 1,
                "train.gradient_checkpointing": "yes" if options.checkpointing else "no",
                "output.directory": f"{folder}/bench", "output.save_steps": 0, "output.tensorboard": False,
            }
        )  # fmt: skip
        steps = 0
        for event in run(config, host=host, control=Controls()):
            if isinstance(event, Judged):
                verdict = event
                print(event.text, flush=True)
            elif isinstance(event, Started):
                course.begin()
            elif isinstance(event, Stepped):
                steps += 1
                print(f"step {event.step}: {course.highest / 2**20:.0f} MiB at most so far", flush=True)
                if steps == options.steps:
                    break
    real = course.end()
    assert verdict is not None
    said = verdict.step + verdict.kept
    print(f"said {said / 2**20:.0f} MiB, took {real / 2**20:.0f} MiB: {said / real - 1:+.1%}")


if __name__ == "__main__":
    main()
