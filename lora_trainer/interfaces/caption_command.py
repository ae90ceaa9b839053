"""`python -m lora_trainer caption`: the images of a folder get captions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.config.load import load_as, load_yaml
from lora_trainer.config.surfaces import add_flags, flags_of

Stoppable = Callable[[Any], AbstractContextManager[None]]

_EXAMPLE = """\
example:
  python -m lora_trainer caption --input images --output images/metadata.csv --model blip-base
  python -m lora_trainer caption --input images --format txt --model wd14 --trigger mycat

docs/captions.md tells which model is for what. A switch takes a word (--download true), a list several."""


def add_caption(verb: argparse.ArgumentParser, stoppable: Stoppable) -> None:
    """Give the verb its flags, all read off the options of captioning; within `stoppable(control)` Ctrl-C stops."""
    verb.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings; flags win over it")
    verb.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    verb.usage = "%(prog)s --input DIR [--output FILE] [--model NAME] [--config FILE] [--dry-run] [--SETTING VALUE ...]"
    verb.epilog = _EXAMPLE
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    add_flags(verb, CaptionConfig, {"": "captions"})
    verb.set_defaults(do=partial(_caption, stoppable))


def _caption(stoppable: Stoppable, given: argparse.Namespace) -> int:
    raw = load_yaml(given.config) if given.config else {}
    config = load_as(CaptionConfig, raw, flags_of(given, CaptionConfig))

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
