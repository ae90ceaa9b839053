"""The demonstration: caption the sample set, train a LoRA on the embedded base from it, draw before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.config.load import load, load_yaml
from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import Control, Event, Finished, Host, Told

ASSETS = Path(__file__).parent / "assets"
WEIGHTS = (0.0, 0.4, 0.8)  # rows of the picture: the base above, then the LoRA at these weights
PROMPTS = (
    "a red house at the sea at night",
    "a blue car in a field by day",
    "a yellow boat at the sea at sunset",
    "a green tree in the snow by day",
    "a purple balloon in a desert at sunset",
    "an orange cat in a field at night",
)
FIRST_SEED = 7


def demo_config(output: Path, captions: Path | None = None) -> RunConfig:
    """The sample run: `assets/neon.yaml`, a lora-scripts file, with its folders made absolute; `captions` is a table
    of other captions than the sample set's own."""
    config = load(load_yaml(ASSETS / "neon.yaml"))
    table = captions or ASSETS / "neon" / "metadata.csv"
    return replace(
        config,
        data=replace(config.data, folder=str(ASSETS / "neon"), metadata=str(table)),
        output=replace(config.output, directory=str(output)),
    )


def demonstrate(output: Path, *, host: Host, control: Control) -> Iterator[Event]:
    """Run the demo; captions (`metadata.csv`) and the picture `before-after.png` lie beside the LoRA. Yields the
    events of captioning and run; the last is Finished."""
    from lora_trainer.jobs.run import run

    table = output / "metadata.csv"
    for event in described(table, host=host, control=control):
        if isinstance(event, Finished):
            if event.outcome != "done":
                yield event
                return
            yield Told(event.text)
        else:
            yield event
    for event in run(demo_config(output, table), host=host, control=control):
        if isinstance(event, Finished) and event.outcome == "done" and event.path:
            picture = event.path.with_name("before-after.png")
            before_after(event.path).save(picture)
            yield Told(f"Before and after, the same prompts and seeds: {picture}")
        yield event


def described(table: Path, *, host: Host, control: Control) -> Iterator[Event]:
    """Let the embedded captioner describe the sample set, with the style's trigger word in front."""
    from lora_trainer.demo.samples import TRIGGER
    from lora_trainer.jobs.captioning import caption_folder

    table.parent.mkdir(parents=True, exist_ok=True)
    config = CaptionConfig(
        input=str(ASSETS / "neon"), output=str(table), model="demo", existing="overwrite", trigger=TRIGGER
    )
    yield from caption_folder(config, host, control)


def before_after(lora: Path, prompts: Sequence[str] = PROMPTS, weights: Sequence[float] = WEIGHTS) -> Image.Image:
    """A table of pictures: a column for each prompt, a row for each weight of the LoRA."""
    rows = pictures(lora, prompts, weights)
    side, label, gap = rows[0][0].width, 28, 4
    width = label * 3 + len(prompts) * (side + gap)
    table = Image.new("RGB", (width, len(weights) * (side + gap) + label), "white")
    pen = ImageDraw.Draw(table)
    for column, prompt in enumerate(prompts):
        words = prompt.split()
        half = (len(words) + 1) // 2
        text = " ".join(words[:half]) + "\n" + " ".join(words[half:])
        pen.multiline_text((label * 3 + column * (side + gap), 2), text, fill="black", spacing=1)
    for row, weight in enumerate(weights):
        top = label + row * (side + gap)
        pen.multiline_text((4, top + side // 2 - 10), "base" if weight == 0 else f"LoRA\nat {weight:g}", fill="black")
        for column, image in enumerate(rows[row]):
            table.paste(image, (label * 3 + column * (side + gap), top))
    return table


def pictures(lora: Path, prompts: Sequence[str], weights: Sequence[float]) -> list[list[Image.Image]]:
    """One row of pictures for each weight: the embedded base with the LoRA at that weight, the same seeds in each."""
    import torch

    from lora_trainer.families.registry import family_named, lend_file
    from lora_trainer.families.sampling import draw
    from lora_trainer.jobs.start import put_on

    lent = lend_file(ASSETS / "scenes.safetensors")
    family = family_named(lent.facts.family)
    base = family.adopt(lent, torch.device("cpu"), torch.float32)
    network = put_on(base, family, lora)
    rows: list[list[Image.Image]] = []
    for weight in weights:
        with network.scaled(weight):
            rows.append(draw(base, prompts, "", size=128, steps=25, guidance=6.0, seed=FIRST_SEED, clip_skip=1))
    network.eject()
    return rows
