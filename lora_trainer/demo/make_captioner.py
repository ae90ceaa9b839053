"""Last stage of the maker: a small BLIP that says what a drawn scene shows, in either style.

It is a transformers folder like any BLIP's (weights, vocabulary, processor), so the captioner that reads those reads
this one.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_trainer.demo import scenes
from lora_trainer.demo.make_vae import draw_many, to_unit
from lora_trainer.demo.pace import Pace, write

SIDE = 128  # pixels
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")  # BERT's, and the one by which BLIP begins to speak


@dataclass(frozen=True)
class CaptionerRecipe:
    """What the captioner's training is made of."""

    plain: int = 5000  # pictures
    neon: int = 5000  # pictures
    batch: int = 32  # pictures
    steps: int = 4000
    rate: float = 1e-3
    shift: int = 8  # pixels; a picture is moved by up to so many each way, since a shape is the same shape anywhere


def vocabulary() -> list[str]:
    """BERT's marks and every word of the full sentences, in a fixed order."""
    words = {word for scene in scenes.every_scene() for word in scenes.caption(scene).split()}
    return [*SPECIAL, *sorted(words)]


def train_captioner(
    folder: Path, work: Path, seed: int, minutes: float | None, recipe: CaptionerRecipe | None = None
) -> float:
    """Train, and write the transformers folder; returns the share of unseen scenes, half of each style, whose caption
    is right word for word."""
    recipe = recipe or CaptionerRecipe()
    torch.manual_seed(seed + 30)
    rng = torch.Generator().manual_seed(seed + 30)
    words = vocabulary()
    pictures, ids = _examples(recipe, seed, words)
    model = new_captioner(words)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    pace, kept = Pace(recipe.steps, recipe.rate, minutes, warmup=200), work / "captioner.pt"
    if kept.exists():
        saved = torch.load(kept, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rng.set_state(saved["rng"])
        pace.resume(saved["pace"])
    model.train()
    while pace.tick(optimizer):
        chosen = torch.randint(len(pictures), (recipe.batch,), generator=rng)
        seen = _moved(to_unit(pictures[chosen]), recipe.shift, rng)
        loss = model(pixel_values=seen, input_ids=ids[chosen], labels=_labels(ids[chosen])).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if pace.step % 100 == 0:
            print(f"captioner step {pace.step} loss {loss.item():.3f}", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng.get_state()}
            write(state | {"pace": pace.state()}, kept)
    model.half().float()  # what is written is what is tested
    write_folder(folder, model, words)
    return accuracy(model.eval(), words, seed + 33)


def new_captioner(words: list[str]) -> Any:
    """A BLIP of under two million parameters with random weights."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    mark = {name: words.index(name) for name in SPECIAL}
    text = {
        "vocab_size": len(words), "hidden_size": 128, "encoder_hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32, "projection_dim": 128,
        "bos_token_id": mark["[DEC]"], "eos_token_id": mark["[SEP]"], "sep_token_id": mark["[SEP]"],
        "pad_token_id": mark["[PAD]"], "label_smoothing": 0.0,
    }  # fmt: skip
    vision = {
        "image_size": SIDE, "patch_size": 16, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5,
        "num_attention_heads": 4,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=128, image_text_hidden_size=128)
    return BlipForConditionalGeneration(config)


def write_folder(folder: Path, model: Any, words: list[str]) -> None:
    """Write model, vocabulary and processor in the files of a BLIP on the hub, the weights in half precision.

    The small files by hand: transformers' own differ between its releases, and all of them read these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    look = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
            "image_processor_type": "BlipImageProcessor"}  # fmt: skip
    speech = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 32, "bos_token": "[DEC]"}
    model.half().save_pretrained(folder, safe_serialization=True)
    model.float()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    for name, content in (("preprocessor_config.json", look), ("tokenizer_config.json", speech)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def accuracy(model: Any, words: list[str], seed: int, count: int = 200) -> float:
    """Share of unseen scenes, half of each style, whose caption is right word for word."""
    right = 0
    for place, style in enumerate(("plain", "neon")):
        pictures, shown = draw_many(count // 2, style, seed + place, SIDE)
        for start in range(0, len(pictures), 50):
            said = model.generate(pixel_values=to_unit(pictures[start : start + 50]), max_new_tokens=16)
            for ids, scene in zip(said.tolist(), shown[start : start + 50], strict=True):
                spoken = " ".join(words[i] for i in ids if words[i] not in SPECIAL)
                right += spoken == scenes.caption(scene)
    return right / count


def _examples(recipe: CaptionerRecipe, seed: int, words: list[str]) -> tuple[Tensor, Tensor]:
    """Pictures as bytes (N, 3, 128, 128) and their captions as ids (N, 16)."""
    plain, neon = draw_many(recipe.plain, "plain", seed + 31, SIDE), draw_many(recipe.neon, "neon", seed + 32, SIDE)
    number = {word: place for place, word in enumerate(words)}
    rows = [
        [number["[DEC]"], *(number[word] for word in scenes.caption(scene).split()), number["[SEP]"]]
        for scene in (*plain[1], *neon[1])
    ]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [number["[PAD]"]] * (longest - len(row)) for row in rows])
    return torch.cat([plain[0], neon[0]]), ids


def _labels(ids: Tensor) -> Tensor:
    """What is to be said (B, 16); padding does not count."""
    return ids.masked_fill(ids == SPECIAL.index("[PAD]"), -100)


def _moved(pictures: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) each moved by up to `most` pixels, edges repeated; every second batch is mirrored."""
    wide = torch.nn.functional.pad(pictures, (most,) * 4, mode="replicate")
    side = pictures.shape[-1]
    corners = torch.randint(2 * most + 1, (len(pictures), 2), generator=rng).tolist()
    moved = torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(wide, corners, strict=True)])
    return moved.flip(-1) if torch.rand((), generator=rng) < 0.5 else moved


def main(argv: list[str] | None = None) -> None:
    """Train the captioner alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the transformers folder to write")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--minutes", type=float, help="stop early")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    given.work.mkdir(parents=True, exist_ok=True)
    share = train_captioner(given.folder, given.work, given.seed, given.minutes)
    print(f"right word for word on unseen scenes: {share:.0%}")


if __name__ == "__main__":
    main()
