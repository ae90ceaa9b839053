"""A language model's adapter: the folder that peft reads, with recipe and model card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch import nn

from lora_trainer import __version__
from lora_trainer.contracts import Event, NetworkState, Told
from lora_trainer.data.text.samples import Turn
from lora_trainer.jobs.recipe import recipe
from lora_trainer.jobs.text_plan import TextPlan
from lora_trainer.networks.adapter import TURNED, Adapter
from lora_trainer.networks.metadata import RECIPE
from lora_trainer.networks.peft_folder import AdapterFacts, endings, write_adapter
from lora_trainer.networks.state import modules_of
from lora_trainer.networks.targets import layer_kind
from lora_trainer.train.state import TrainingState
from lora_trainer.weights.write import write_whole


@dataclass(frozen=True)
class TextOutput:
    """Implements `readied.Output`."""

    plan: TextPlan
    model: nn.Module

    def write(self, path: Path, state: TrainingState) -> None:
        """The adapter in the folder `path`; a reader knows it by its settings, which come last."""
        metadata = {RECIPE: json.dumps(recipe(self.plan), ensure_ascii=False, sort_keys=True), "step": str(state.step)}
        card = model_card(self.plan, state.step).encode("utf-8")
        write_whole(path / "README.md", lambda file: _put(file, card))
        write_adapter(
            path, state.result, adapter_facts(self.plan, self.model, state.network), metadata=metadata,
            precision=self.plan.config.output.precision,
        )  # fmt: skip

    def announce(self, path: Path) -> None:
        """Nobody lists adapters."""

    def present(self, path: Path) -> Iterator[Event]:
        """How it is tried."""
        base = self.plan.config.model.base
        yield Told(f'Try it: python -m lora_trainer generate --base "{base}" --adapter "{path}" --prompt "..."')


def adapter_facts(plan: TextPlan, model: nn.Module, state: NetworkState) -> AdapterFacts:
    """What adapter_config.json says of the network that is on `model`."""
    chosen = [name.partition(".")[2] for name in modules_of(state)]
    plain = {path.replace(".base_layer", ""): module for path, module in _layers(model)}
    turned = any(type(plain[path]).__name__ == TURNED for path in chosen)
    return AdapterFacts(
        base=plan.facts.known_as, dropout=plan.config.network.dropout, targets=endings(chosen, list(plain)),
        turned=turned,
    )  # fmt: skip


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model's own linear layers by path, adapted ones below their wrapper; not the adapter's."""
    for path, module in cast("Any", model).named_modules():
        if layer_kind(module) is not None and not isinstance(module, Adapter):
            yield path, module


def model_card(plan: TextPlan, step: int) -> str:
    """README.md of the adapter, with the front matter that model hubs read."""
    facts, config = plan.facts, plan.config
    example = plan.wording.question([Turn("user", "...")])
    shared = [choice for choice in plan.choices if _shared(choice.name)]
    settings = "\n".join(f"| {choice.name} | {_cell(choice.value)} |" for choice in shared)
    return f"""---
base_model: {json.dumps(facts.known_as)}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
---

# {plan.files.name}

A LoRA for {facts.name} ({facts.architecture}), trained for {step} of {plan.steps} steps on {len(plan.data.samples)}
samples with LoRA Trainer {__version__}. The whole configuration stands in the notes of adapter_model.safetensors.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({json.dumps(facts.known_as)}), "this folder")
```

Questions are put to it in this form ({plan.wording.form}: {plan.wording.reason}):

```text
{example}
```

| | |
|---|---|
{settings}
| rank, alpha | {config.network.rank}, {plan.alpha:g} |
"""


def _shared(name: str) -> bool:
    """Whether a choice says something of the adapter, and nothing of the machine or of its owner's texts."""
    return name in ("tokens", "longest sample", "steps", "batch", "network", "learning rate", "precision", "seed")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _put(file: BinaryIO, data: bytes) -> None:
    file.write(data)
