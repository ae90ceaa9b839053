"""`python -m lora_trainer class-images`: pictures of a class, by which a LoRA leaves the class as it was."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from lora_trainer.config.class_images import ClassImagesConfig
from lora_trainer.interfaces.verbs import Stoppable, describe, options_of

_EXAMPLE = """\
example:
  python -m lora_trainer class-images --base model.safetensors --prompt "a photo of a cat" --folder cats --count 100
  python -m lora_trainer train --config my_cat.yaml --data.regularization cats

Pictures that are there count, so that a second call draws what is missing: docs/crops.md."""


def add_class_images(verb: argparse.ArgumentParser, stoppable: Stoppable) -> None:
    """Give the verb its flags, all read off the options; within `stoppable(control)` Ctrl-C stops."""
    describe(
        verb, ClassImagesConfig, {"": "pictures"}, example=_EXAMPLE,
        usage="--prompt TEXT --folder DIR --base FILE [--count N] [--dry-run]",
        dry_run="show what would be drawn, and draw nothing",
    )  # fmt: skip
    verb.set_defaults(do=partial(_draw, stoppable))


def _draw(stoppable: Stoppable, given: argparse.Namespace) -> int:
    config = options_of(given, ClassImagesConfig)

    from lora_trainer.hosts.standalone import Standalone, keep_freed_memory
    from lora_trainer.interfaces.progress import exit_code, follow
    from lora_trainer.jobs.class_images import Controls, draw_class_images, plan_class_images

    if given.dry_run:
        print(plan_class_images(config, Standalone()).text())
        return 0
    keep_freed_memory()
    control = Controls()
    with stoppable(control):
        return exit_code(follow(draw_class_images(config, Standalone(), control), sys.stderr))
