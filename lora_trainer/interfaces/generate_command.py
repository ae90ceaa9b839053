"""`python -m lora_trainer generate`: what a language model answers, without and with an adapter."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from lora_trainer.config.asking import AskConfig
from lora_trainer.config.load import load_as, load_yaml
from lora_trainer.config.surfaces import add_flags, flags_of
from lora_trainer.contracts import Finished, Sampled, Told
from lora_trainer.interfaces.caption_command import Stoppable

_EXAMPLE = """\
example:
  python -m lora_trainer generate --base llama --adapter output/trade --prompt "What is a gusset?"

Answers go to the standard output, everything else to the standard error."""


def add_generate(verb: argparse.ArgumentParser, stoppable: Stoppable) -> None:
    """Give the verb its flags, all read off the options of asking; within `stoppable(control)` Ctrl-C stops."""
    verb.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings; flags win over it")
    verb.usage = "%(prog)s --base DIR [--adapter DIR] --prompt TEXT [TEXT ...] [--SETTING VALUE ...]"
    verb.epilog = _EXAMPLE
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    add_flags(verb, AskConfig, {"": "asking"})
    verb.set_defaults(do=partial(_generate, stoppable))


def _generate(stoppable: Stoppable, given: argparse.Namespace) -> int:
    raw = load_yaml(given.config) if given.config else {}
    config = load_as(AskConfig, raw, flags_of(given, AskConfig))

    from lora_trainer.hosts.standalone import Standalone, keep_freed_memory
    from lora_trainer.interfaces.progress import exit_code
    from lora_trainer.jobs.asking import Controls, ask, plan_asking

    keep_freed_memory()
    control, host = Controls(), Standalone()
    end: Finished | None = None
    with stoppable(control):
        for event in ask(plan_asking(config, host), host, control):
            if isinstance(event, Told):
                print(event.text, file=sys.stderr)
            elif isinstance(event, Sampled):
                _show(event, adapter=config.adapter)
            elif isinstance(event, Finished):
                end = event
    return exit_code(end)


def _show(event: Sampled, *, adapter: str) -> None:
    which = ("without the adapter", "with the adapter")[event.step] if adapter else "the model"
    for prompt, text in zip(event.prompts, event.texts, strict=True):
        print(f"--- {prompt} ({which})\n{text}\n", flush=True)
