"""Makes the embedded base and captioner: `python -m lora_trainer.demo.make --output DIR`.

Everything comes from drawn pictures and one seed. Each stage keeps its work in DIR, so a stopped run goes on where it
was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lora_trainer.demo.base_file import check, write_base
from lora_trainer.demo.make_captioner import train_captioner
from lora_trainer.demo.make_judge import train_judge
from lora_trainer.demo.make_unet import Pair, UnetRecipe, train_unet
from lora_trainer.demo.make_vae import VaeRecipe, train_vae
from lora_trainer.demo.paint import grid, paint
from lora_trainer.demo.words import clip_tokenizer

PROMPTS = (
    "a red house in a field by day",
    "a blue car in a desert by day",
    "a white cat in the snow at night",
    "a yellow fish at the sea at sunset",
    "a purple flower in a field at sunset",
    "a green tree in a desert at night",
    "an orange boat at the sea by day",
    "a red balloon in the snow by day",
    "a blue cat at the sea at night",
    "a white house in a desert at sunset",
    "a green fish in the snow by day",
    "an orange flower at the sea at night",
    "a purple car in a field at sunset",
    "a yellow boat in the snow by day",
    "a red tree",
    "blue balloon, desert",
)
"""What the progress sheets show."""


def main(argv: list[str] | None = None) -> None:
    """Trains the VAE, then the text encoder with the UNet, the judge and the captioner, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the base and the checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="stop early: a quarter for the VAE, the rest for the UNet")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    given.output.mkdir(parents=True, exist_ok=True)
    device, minutes = torch.device(given.device), given.minutes
    vae = train_vae(given.output, device, given.seed, minutes and minutes * 0.25, VaeRecipe())
    tokenize = clip_tokenizer()

    def look(pair: Pair, step: int) -> None:
        pictures = paint(vae, pair.unet, pair.text, tokenize, PROMPTS, given.seed)
        grid(pictures, 8).save(given.output / f"sheet_{step:05d}.png")
        write_base(given.output, vae, pair.unet, pair.text)

    pair = train_unet(given.output, vae, given.seed, minutes and minutes * 0.75, UnetRecipe(), look)
    check(vae, pair.unet, pair.text)
    held_out = train_judge(given.output / "judge.safetensors", given.seed)
    print(f"the judge is right on held-out drawings: {held_out}")
    described = train_captioner(given.output / "captioner", given.output, given.seed, None)
    print(f"the captioner is right, word for word, on held-out drawings: {described:.0%}")
    print(f"wrote {write_base(given.output, vae, pair.unet, pair.text)}")


if __name__ == "__main__":
    main()
