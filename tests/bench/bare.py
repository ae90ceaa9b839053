"""The floor of a LoRA step: forward and backward of the frozen UNet, with a gradient wanted at its input only.

    python tests/bench/bare.py CHECKPOINT [--resolution 128] [--batch 1] [--steps 8]

Prints a line after each step, as `step.py` does. Nothing of ours is in the step: diffusers' module, torch's defaults.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lora_trainer.contracts import TextStates  # noqa: E402
from lora_trainer.families.registry import family_named, lend_file  # noqa: E402

CLASSES_WIDTH = 1280  # SDXL's pooled text output


def main() -> None:
    """Load the UNet alone and step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    lent = lend_file(options.checkpoint)
    base = family_named(lent.facts.family).adopt(lent, torch.device("cpu"), torch.float32, ["unet"])
    width = base.parts["unet"].config.cross_attention_dim  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    batch, side = options.batch, options.resolution // 8
    text = TextStates(
        torch.randn(batch, 77, width, generator=generator), torch.randn(batch, CLASSES_WIDTH, generator=generator)
    )
    sizes = torch.tensor([[options.resolution, options.resolution, 0, 0] + [options.resolution] * 2] * batch)
    for step in range(options.steps):
        noisy = torch.randn(batch, 4, side, side, generator=generator).requires_grad_()
        base.predict(noisy, torch.full((batch,), 500), text, sizes).square().mean().backward()
        print(f"step {step + 1}/{options.steps}", flush=True)


if __name__ == "__main__":
    main()
