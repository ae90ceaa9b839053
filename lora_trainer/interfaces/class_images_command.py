"""`python -m lora_trainer class-images`: pictures of a class, by which a LoRA leaves the class as it was."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from lora_trainer.config.class_images import ClassImagesConfig
from lora_trainer.config.load import load_as, load_yaml
from lora_trainer.config.surfaces import add_flags, flags_of
from lora_trainer.interfaces.caption_command import Stoppable

_EXAMPLE = """\
example:
  python -m lora_trainer class-images --base model.safetensors --prompt "a photo of a cat" --folder cats --count 100
  python -m lora_trainer train --config my_cat.yaml --data.regularization cats

Pictures that are there count, so that a second call draws what is missing: docs/crops.md."""


def add_class_images(verb: argparse.ArgumentParser, stoppable: Stoppable) -> None:
    """Give the verb its flags, all read off the options; within `stoppable(control)` Ctrl-C stops."""
    verb.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings; flags win over it")
    verb.add_argument("--dry-run", action="store_true", help="show what would be drawn, and draw nothing")
    verb.usage = "%(prog)s --prompt TEXT --folder DIR --base FILE [--count N] [--dry-run] [--SETTING VALUE ...]"
    verb.epilog = _EXAMPLE
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    add_flags(verb, ClassImagesConfig, {"": "pictures"})
    verb.set_defaults(do=partial(_draw, stoppable))


def _draw(stoppable: Stoppable, given: argparse.Namespace) -> int:
    raw = load_yaml(given.config) if given.config else {}
    config = load_as(ClassImagesConfig, raw, flags_of(given, ClassImagesConfig))

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
