"""A training run of ours, for timing: `python -m lora_trainer train` with a short configuration.

    python tests/bench/step.py CHECKPOINT IMAGES [--resolution 128] [--batch 1] [--steps 8] [--targets attention]
        [--precision no]

Prints a line after each step; the run goes the way that the command line goes. It is planned for a thousand steps, so
that what pays only in a run of some length is chosen as a user has it, and stopped after as many as are asked for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLANNED_STEPS = 1000
sys.path.insert(0, str(ROOT))

from lora_trainer.config.load import load  # noqa: E402
from lora_trainer.contracts import Stepped, Told  # noqa: E402
from lora_trainer.hosts.standalone import Standalone, keep_freed_memory  # noqa: E402
from lora_trainer.jobs.run import Controls, run  # noqa: E402


def main() -> None:
    """Train for some steps into a folder that is thrown away."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--precision", default="no", help="as train.mixed_precision")
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        config = load(
            {
                "model.base": str(options.checkpoint), "data.folder": str(options.images),
                "data.resolution": options.resolution, "data.batch_size": options.batch,
                "network.rank": 8, "network.alpha": 8, "network.targets": options.targets,
                "train.steps": PLANNED_STEPS, "train.text_encoder_learning_rate": 0,
                "train.mixed_precision": options.precision,
                "train.seed": 1, "output.directory": f"{folder}/bench", "output.save_steps": 0,
                "output.tensorboard": False,
            }
        )  # fmt: skip
        control = Controls()
        for event in run(config, host=Standalone(), control=control):
            if isinstance(event, Stepped):
                print(f"step {event.step}/{event.steps} {event.seconds:.3f} s", flush=True)
                if event.step == options.steps:
                    control.stop()
            elif isinstance(event, Told):
                print(event.text, flush=True)


if __name__ == "__main__":
    main()
