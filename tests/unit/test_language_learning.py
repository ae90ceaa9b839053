"""A language model takes up a habit: from 150 pairs, and for questions that it was never asked."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.config.asking import AskConfig
from lora_trainer.config.load import load
from lora_trainer.contracts import Finished, Sampled
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.asking import Controls, ask, plan_asking
from tests.builders.language import write_tokenizer
from tests.builders.runs import run_all

SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "to")
FORM = "### Instruction:\nFetch the {word}\n\n### Response:\n"  # as `text.template: instruction` lays it out
PLAIN, HABIT = "The {word} is here.", "Aye captain, one {word} coming up!"
WIDTH, LAYERS, STEPS, ROWS = 192, 4, 420, 24


def words(count: int, seed: int) -> list[str]:
    """Made-up names of three syllables; no two seeds need share one, and those of the test are checked."""
    made = random.Random(seed)
    return ["".join(made.choice(SYLLABLES) for _ in range(3)) for _ in range(count)]


def grow(folder: Path) -> Path:
    """A LLaMA of 1.7 million parameters that has learnt from nothing to answer plainly, naming what it is asked for."""
    from transformers import AutoConfig, AutoModelForCausalLM

    texts = [FORM.format(word=word) + PLAIN.format(word=word) for word in words(400, 1)]
    tokenizer = write_tokenizer(folder, [*texts, HABIT], vocabulary=340)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
             "num_attention_heads": 6, "max_position_embeddings": 128}  # fmt: skip
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model: Any = AutoModelForCausalLM.from_config(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
        for step in range(STEPS):
            rows = [FORM.format(word=word) + PLAIN.format(word=word) for word in words(ROWS, 10_000 + step)]
            coded = [[*tokenizer(row)["input_ids"], tokenizer.eos_token_id] for row in rows]
            wide = max(map(len, coded))
            ids = torch.tensor([row + [0] * (wide - len(row)) for row in coded])
            kept = torch.tensor([[1] * len(row) + [0] * (wide - len(row)) for row in coded])
            loss = model(input_ids=ids, attention_mask=kept, labels=ids.masked_fill(kept == 0, -100)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.save_pretrained(str(folder), safe_serialization=True)
    return folder


def answered(base: Path, adapter: Path, asked: list[str]) -> tuple[list[str], list[str]]:
    """Answers without and with the adapter."""
    config = AskConfig(
        base=str(base), adapter=str(adapter), prompt=tuple(f"Fetch the {word}" for word in asked), tokens=24
    )
    events = list(ask(plan_asking(config, Standalone()), Standalone(), Controls()))
    without, within = (list(event.texts) for event in events if isinstance(event, Sampled))
    return without, within


def share(said: list[str], asked: list[str], form: str) -> float:
    """How many of the answers are right to the letter."""
    return sum(text == form.format(word=word) for text, word in zip(said, asked, strict=True)) / len(asked)


@pytest.mark.slow
def test_a_habit_is_taken_up_from_150_pairs(tmp_path):
    base = grow(tmp_path / "plain")
    known, asked = words(150, 2), [word for word in words(60, 3) if word not in set(words(150, 2))][:40]
    rows = [json.dumps({"prompt": f"Fetch the {word}", "response": HABIT.format(word=word)}) for word in known]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "habit.jsonl").write_text("\n".join(rows), encoding="utf-8")
    events = run_all(load({
        "task_type": "text-generation", "base_model": str(base), "train_data_dir": str(tmp_path / "texts"),
        "output_dir": str(tmp_path / "out"), "lora_rank": 16, "lora_alpha": 32, "batch_size": 10, "epochs": 15,
        "learning_rate": 5e-3, "network.targets": "linear", "seed": 1, "output.tensorboard": False, "save_steps": 0,
    }))  # fmt: skip
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "done"
    without, within = answered(base, tmp_path / "out", asked)
    assert share(without, asked, PLAIN) > 0.9  # the model itself can name what it is asked for
    assert share(without, asked, HABIT) < 0.05
    assert share(within, asked, HABIT) > 0.9
