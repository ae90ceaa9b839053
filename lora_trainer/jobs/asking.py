"""A language model asked without and with an adapter: the command `generate` and the tab's try-it box."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lora_trainer.config.asking import AskConfig
from lora_trainer.config.load import load_as
from lora_trainer.contracts import Control, Event, Finished, Host, PlainError, Prepared, Sampled, Told
from lora_trainer.data.text.wording import Wording, wording_for
from lora_trainer.families.language.answer import Asking, answers
from lora_trainer.families.language.load import LanguageModel, load, load_tokenizer
from lora_trainer.families.language.place import place_of
from lora_trainer.families.language.recognise import LanguageFacts, recognise
from lora_trainer.jobs.fetching import language_model_fetched
from lora_trainer.jobs.host_control import HostControl
from lora_trainer.jobs.limits import check_allowed, check_fetching, paths_for
from lora_trainer.jobs.planned import precision_for
from lora_trainer.jobs.tasks import Chore
from lora_trainer.jobs.text_samples import asked, endings
from lora_trainer.networks.metadata import RECIPE
from lora_trainer.networks.peft_folder import WEIGHTS, read_adapter, worn
from lora_trainer.train.control import Controls
from lora_trainer.weights.read import read_metadata

__all__ = ["AskPlan", "Controls", "answers_chore", "ask", "ask_fetching", "plan_asking"]

WITHOUT, WITH = 0, 1  # the "steps" by which answers without and with the adapter are told apart


@dataclass(frozen=True)
class AskPlan:
    """What is asked of which model."""

    config: AskConfig
    facts: LanguageFacts
    adapter: Path | None
    wording: Wording


def plan_asking(config: AskConfig, host: Host) -> AskPlan:
    """Find the model and the adapter. Raises PlainError; loads no weights."""
    if not any(prompt.strip() for prompt in config.prompt):
        raise PlainError("Nothing is asked; give a prompt.")
    facts = recognise(place_of(config.base, host.paths().checkpoints))
    adapter = Path(config.adapter).expanduser() if config.adapter else None
    form = config.template
    if adapter:
        read_adapter(adapter)
        form = trained_form(adapter) if form == "auto" else form
    return AskPlan(config, facts, adapter, wording_for(form, load_tokenizer(facts)))


def trained_form(adapter: Path) -> str:
    """How the questions were worded that an adapter of ours was trained on; "auto" for another's."""
    try:
        recipe: Any = json.loads(read_metadata(adapter / WEIGHTS).get(RECIPE, "{}"))
        text = cast("Mapping[str, Any]", recipe).get("text", {})
        form = str(text.get("template", "auto"))
    except (ValueError, AttributeError):
        return "auto"
    return form if form in ("chat", "instruction", "plain") else "auto"


def ask(plan: AskPlan, host: Host, control: Control) -> Iterator[Event]:
    """The answers without the adapter, then with it, each as a `Sampled`; the last event is Finished."""
    config = plan.config
    control = HostControl(control, host)
    yield Prepared("answers", 0, _turns(plan) * len(config.prompt))
    with host.visit(), host.turn():
        device = host.device()
        dtype, _ = precision_for(config.mixed_precision, device)
        language = load(plan.facts, device, dtype)
        yield Told(f"{plan.facts.name} is asked on {device}, {str(dtype).removeprefix('torch.')}.")
        done = 0
        for step in range(_turns(plan)):
            said: list[str] = []
            for number, prompt in enumerate(config.prompt):
                if control.stopped():
                    yield Finished("stopped", done, None, "Stopped before all was answered.")
                    return
                said.append(_answer(plan, language, prompt, config.seed + number, worn_adapter=step == WITH))
                done += 1
                yield Prepared("answers", done, _turns(plan) * len(config.prompt))
            yield Sampled(step, (), config.prompt, tuple(said))
    yield Finished("done", done, None, "Everything is answered.")


def ask_fetching(config: AskConfig, host: Host, control: Control) -> Iterator[Event]:
    """`ask`, after the model was fetched where it must and may be. Raises PlainError."""
    if config.download:
        yield from language_model_fetched(config.base, host.paths(), control)
        if control.stopped():
            yield Finished("stopped", 0, None, "Stopped while the model was fetched; what has come is kept.")
            return
    yield from ask(plan_asking(config, host), host, control)


def _turns(plan: AskPlan) -> int:
    return 2 if plan.adapter else 1


def _answer(plan: AskPlan, language: LanguageModel, prompt: str, seed: int, *, worn_adapter: bool) -> str:
    config = plan.config
    asking = Asking(config.tokens, config.temperature, seed, endings(plan.wording))
    question = asked(plan.wording, prompt, config.system)
    if not worn_adapter or plan.adapter is None:
        return answers(language, [question], asking)[0]
    with worn(language.model, plan.adapter):
        return answers(language, [question], asking)[0]


def answers_chore(raw: Mapping[str, Any], host: Host, *, by_page: bool = False) -> Chore:
    """The asking as work that takes its turn. Raises ConfigError and PlainError at once; `by_page` as in
    `limits.load_allowed`."""
    config = load_as(AskConfig, raw)
    paths = paths_for(host, by_page=by_page)
    if Path(config.base).expanduser().exists():
        check_allowed(config.base, paths, "base")
    if config.adapter:
        check_allowed(config.adapter, paths, "adapter")
    if config.download:
        check_fetching(paths, "download")
    else:
        plan_asking(config, host)  # its faults are told now, and not when its turn has come
    name = Path(config.adapter or config.base).name
    steps = (2 if config.adapter else 1) * len(config.prompt)
    return Chore("answers", name, steps, start=lambda host, control: ask_fetching(config, host, control))
