"""`python -m lora_trainer check`: what in a folder of images and captions spoils a training."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lora_trainer.contracts import PlainError

_EXAMPLE = """\
example:
  python -m lora_trainer check images --trigger mycat --resolution 768
  python -m lora_trainer check images --fix duplicate blurry

No image is ever changed or deleted. docs/check.md tells what is looked for. Exit code 0: healthy, or advice only; 2: an
image cannot be trained on."""

_HEALTHY, _SICK = 0, 2


def add_check(verb: argparse.ArgumentParser) -> None:
    """Give the verb its flags."""
    verb.add_argument("folder", type=Path, metavar="DIR", help="folder with the images; sub-folders count too")
    verb.add_argument("--metadata", type=Path, metavar="FILE", help="table of captions, if it lies elsewhere")
    verb.add_argument("--trigger", default="", metavar="WORD", help="word that each caption should begin with")
    verb.add_argument("--resolution", type=_pixels, default=512, metavar="N",
                      help="pixels to be trained at, as data.resolution (default: 512)")  # fmt: skip
    verb.add_argument("--format", choices=("text", "json"), default="text", help="form of the report (default: text)")
    verb.add_argument("--fix", nargs="+", default=[], metavar="KIND",
                      help="apply the remedies of these kinds, which the report names, and report again")  # fmt: skip
    verb.epilog = _EXAMPLE
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    verb.set_defaults(do=_check)


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 64 <= int(text) <= 4096:  # the bounds of data.resolution
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of pixels from 64 to 4096")
    return int(text)


def _check(given: argparse.Namespace) -> int:
    from lora_trainer.interfaces.progress import follow
    from lora_trainer.jobs.checkup import FIXABLE, Checkup

    unknown = [kind for kind in given.fix if kind not in FIXABLE]
    if unknown:
        raise PlainError(f"--fix knows no remedy for {', '.join(unknown)}; it has one for {', '.join(FIXABLE)}.")
    if "trigger_missing" in given.fix and not given.trigger:
        raise PlainError("--fix trigger_missing has to know the word; give it with --trigger.")
    checkup = Checkup(given.folder.expanduser(), given.metadata, trigger=given.trigger, resolution=given.resolution)
    follow(checkup.look(), sys.stderr)
    for done in checkup.fix(given.fix):
        print(done, file=sys.stderr if given.format == "json" else sys.stdout)
    report = checkup.report()
    print(json.dumps(report.whole(), ensure_ascii=True, indent=1) if given.format == "json" else report.text())
    return _HEALTHY if report.trainable else _SICK
