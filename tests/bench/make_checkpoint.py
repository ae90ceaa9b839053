"""Write a random-weight checkpoint of full size in LDM names, to measure on: `make_checkpoint.py sd1 OUT [--half]`.

The numbers are those of the published architectures (SD1.5: 860 M UNet, 84 M VAE, 123 M CLIP-L; 4.3 GB in float32);
the time of a step does not depend on the values, as long as none is zero, infinite or denormal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lora_trainer.contracts import TensorInfo  # noqa: E402
from lora_trainer.weights.write import write_stream  # noqa: E402
from tests.builders.slim import Shapes, Sketch, clip_shapes, open_clip_shapes, unet_shapes, vae_shapes  # noqa: E402

# Widths and depths as in the architectures' own configuration files: CompVis/stable-diffusion
# configs/stable-diffusion/v1-inference.yaml, Stability-AI/generative-models configs/inference/sd_xl_base.yaml.
UNETS = {
    "sd1": Sketch((320, 640, 1280, 1280), (1, 1, 1, 0), 1, False, 768, 0),
    "sdxl": Sketch((320, 640, 1280), (0, 2, 10), 10, True, 2048, 2816),
}
VAE_CHANNELS = (128, 256, 512, 512)


def shapes(kind: str) -> Shapes:
    """Names and shapes of the whole checkpoint."""
    for name, shape in unet_shapes(UNETS[kind]):
        yield f"model.diffusion_model.{name}", shape
    for name, shape in vae_shapes(VAE_CHANNELS):
        yield f"first_stage_model.{name}", shape
    if kind == "sd1":
        yield from clip_shapes("cond_stage_model.transformer.text_model.", width=768, layers=12, inner=4)
    else:
        yield from clip_shapes("conditioner.embedders.0.transformer.text_model.", width=768, layers=12, inner=4)
        yield from open_clip_shapes("conditioner.embedders.1.model.", width=1280, layers=32, inner=4)


def fill(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Matrices that keep the scale of what passes through them; norms near one, biases small."""
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values.mul_(torch.Size(shape[1:]).numel() ** -0.5)
    return values.mul_(0.02)


def main() -> None:
    """Write one tensor at a time, so that memory holds only the largest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=sorted(UNETS))
    parser.add_argument("output", type=Path)
    parser.add_argument("--half", action="store_true", help="float16 instead of float32")
    options = parser.parse_args()
    dtype, code = (torch.float16, "F16") if options.half else (torch.float32, "F32")
    found = dict(shapes(options.kind))
    header = {name: TensorInfo(code, shape) for name, shape in found.items()}
    generator = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, shape in found.items():
            values = fill(shape, generator)
            if len(shape) == 1 and name.endswith("weight"):
                values += 1  # a norm's
            yield name, values.to(dtype)

    write_stream(options.output, header, tensors(), {})
    print(f"{options.output}: {options.output.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
