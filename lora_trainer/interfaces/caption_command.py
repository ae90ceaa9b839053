"""`python -m lora_trainer caption`: the images of a folder get captions."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.interfaces.verbs import Stoppable, describe, options_of

_EXAMPLE = """\
example:
  python -m lora_trainer caption --input images --output images/metadata.csv --model blip-base
  python -m lora_trainer caption --input images --format txt --model wd14 --trigger mycat

docs/captions.md tells which model is for what. A switch takes a word (--download true), a list several."""


def add_caption(verb: argparse.ArgumentParser, stoppable: Stoppable) -> None:
    """Give the verb its flags, all read off the options of captioning; within `stoppable(control)` Ctrl-C stops."""
    describe(
        verb, CaptionConfig, {"": "captions"}, example=_EXAMPLE,
        usage="--input DIR [--output FILE] [--model NAME] [--config FILE] [--dry-run]",
        dry_run="show what would be done, and do nothing",
    )  # fmt: skip
    verb.set_defaults(do=partial(_caption, stoppable))


def _caption(stoppable: Stoppable, given: argparse.Namespace) -> int:
    config = options_of(given, CaptionConfig)

    from lora_trainer.hosts.standalone import Standalone
    from lora_trainer.interfaces.progress import exit_code, follow
    from lora_trainer.jobs.captioning import Controls, caption_folder, captioner_for, plan_captions

    if given.dry_run:
        print(plan_captions(config).text())
        if not config.download:  # else a model that is not there would be fetched now
            print(f"captioner     {captioner_for(config, Standalone()).name}, ready")
        return 0
    control = Controls()
    with stoppable(control):
        return exit_code(follow(caption_folder(config, Standalone(), control), sys.stderr))
