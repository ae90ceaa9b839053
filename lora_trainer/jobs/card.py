"""What the WebUI's Lora page shows of a LoRA: a JSON file and a preview of the same name beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO

from lora_trainer.contracts import HostPaths, PlainError, Told
from lora_trainer.jobs.plan import Plan
from lora_trainer.jobs.recipe import tag_counts
from lora_trainer.weights.write import write_whole

PREFERRED_WEIGHT = 0.8
# The words of AUTOMATIC1111 v1.10.1, extensions-builtin/Lora/network.py, SdVersion; its page hides other versions.
VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}


def write_card(plan: Plan, paths: HostPaths) -> Iterator[Told]:
    """Write `<name>.json` and `<name>.png` where the LoRA went into the host's own folder.

    Files that are there already are somebody's work and are left alone. A disk that refuses costs the card only, and
    is told.
    """
    if paths.loras is None or plan.files.folder != paths.loras:
        return
    try:
        card, picture = plan.files.lora.with_suffix(".json"), plan.files.lora.with_suffix(".png")
        if not card.exists():
            text = json.dumps(_card(plan), indent=4, ensure_ascii=False)
            write_whole(card, lambda file: _put(file, text))
        sample = plan.files.sample(plan.steps, 0)
        if sample.exists() and not picture.exists():
            with sample.open("rb") as source:
                write_whole(picture, lambda file: shutil.copyfileobj(source, file))
    except PlainError as error:
        yield Told(f"The LoRA is saved, but not its card for the Lora page: {error}", "warning")


def activation_text(plan: Plan) -> str:
    """What to write into a prompt to call the LoRA: the trigger word, else the tag that most captions share."""
    if plan.config.data.trigger:
        return plan.config.data.trigger
    return next((tag for tag, count in tag_counts(plan.data.items).most_common(1) if count > 1), "")


def _card(plan: Plan) -> dict[str, Any]:
    return {
        "description": "",
        "sd version": VERSIONS.get(plan.family.name, "Unknown"),
        "activation text": activation_text(plan),
        "preferred weight": PREFERRED_WEIGHT,
        "negative text": "",
        "notes": f"Trained on {plan.lent.name} with {len(plan.data.items)} images, {plan.steps} steps, "
        f"rank {plan.config.network.rank}, {plan.resolution} px, seed {plan.seed}.",
    }


def _put(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8"))
