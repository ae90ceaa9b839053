"""`python -m lora_trainer generate`: what a language model answers, without and with an adapter."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from functools import partial

from lora_trainer.config.asking import AskConfig
from lora_trainer.contracts import Event, Sampled
from lora_trainer.interfaces.verbs import Stoppable, describe, options_of

_EXAMPLE = """\
example:
  python -m lora_trainer generate --base llama --adapter output/trade --prompt "What is a gusset?"

Answers go to the standard output, everything else to the standard error."""


def add_generate(verb: argparse.ArgumentParser, stoppable: Stoppable) -> None:
    """Give the verb its flags, all read off the options of asking; within `stoppable(control)` Ctrl-C stops."""
    describe(
        verb, AskConfig, {"": "asking"}, example=_EXAMPLE,
        usage="--base DIR [--adapter DIR] --prompt TEXT [TEXT ...]",
    )  # fmt: skip
    verb.set_defaults(do=partial(_generate, stoppable))


def _generate(stoppable: Stoppable, given: argparse.Namespace) -> int:
    config = options_of(given, AskConfig)

    from lora_trainer.hosts.standalone import Standalone, keep_freed_memory
    from lora_trainer.interfaces.progress import exit_code, follow
    from lora_trainer.jobs.asking import Controls, ask_fetching

    keep_freed_memory()
    control = Controls()
    with stoppable(control):
        events = ask_fetching(config, Standalone(), control)
        return exit_code(follow(_said(events, adapter=config.adapter), sys.stderr))


def _said(events: Iterable[Event], *, adapter: str) -> Iterator[Event]:
    """The events, without the answers, which are shown where others can read them."""
    for event in events:
        if isinstance(event, Sampled):
            _show(event, adapter=adapter)
        else:
            yield event


def _show(event: Sampled, *, adapter: str) -> None:
    which = ("without the adapter", "with the adapter")[event.step] if adapter else "the model"
    for prompt, text in zip(event.prompts, event.texts, strict=True):
        print(f"--- {prompt} ({which})\n{text}\n", flush=True)
