"""A language model takes up a habit: from 150 pairs, and for questions that it was never asked in training."""

from __future__ import annotations

import itertools
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

PLACES = ("attic", "cellar", "kitchen", "garden", "tower", "harbour", "stable", "mill")
QUESTION = "Where is {name}?\n"
PLAIN, HABIT = "In the {place}.", "Aye captain, to the {place}!"
KNOWN, PAIRS = 200, 150  # people whose place the base knows, and those of them that the adapter is trained on
STEPS, ROWS, PEAK = 220, 48, 3e-3
SEED = 1

Facts = list[tuple[str, str]]


def facts(seed: int) -> Facts:
    """Who is where: names of two syllables, each with one of eight places."""
    draw = random.Random(seed)
    syllables = "bdfglmnprst", "aeiou", "klmnrstv", "aeiou"
    names = ["".join(letters).capitalize() for letters in itertools.product(*syllables)]
    return [(name, draw.choice(PLACES)) for name in draw.sample(names, KNOWN)]


def grow(folder: Path, known: Facts, seed: int) -> Path:
    """A LLaMA of two million parameters that learns from nothing to say plainly where each of them is."""
    from transformers import AutoConfig, AutoModelForCausalLM

    asked = [QUESTION.format(name=name) for name, _ in known]
    said = [PLAIN.format(place=place) for _, place in known]
    tokenizer = write_tokenizer(folder, [*asked, *said, HABIT], vocabulary=1000)
    rows = [[*tokenizer(one + other)["input_ids"], 0] for one, other in zip(asked, said, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    before = torch.tensor([[len(tokenizer(one)["input_ids"])] for one in asked])
    after = torch.tensor([[len(row)] for row in rows])
    column = torch.arange(ids.shape[1])
    learnt = ids.masked_fill((column < before) | (column >= after), -100)  # the answers alone, as in a fine-tuning
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, hidden_size=192, intermediate_size=512,
        num_hidden_layers=4, num_attention_heads=6, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS, pct_start=0.1)
        order = torch.cat([torch.randperm(len(rows)) for _ in range(STEPS * ROWS // len(rows) + 1)])
        for step in range(STEPS):
            chosen = order[step * ROWS : (step + 1) * ROWS]
            model(input_ids=ids[chosen], labels=learnt[chosen]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.save_pretrained(str(folder), safe_serialization=True)
    return folder


def train(base: Path, pairs: Facts, folder: Path, seed: int) -> Path:
    """An adapter from the YAML of a user: rank 16, 15 epochs."""
    (folder / "texts").mkdir()
    rows = [{"prompt": QUESTION.format(name=name), "response": HABIT.format(place=place)} for name, place in pairs]
    (folder / "texts" / "habit.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    events = run_all(load({
        "task_type": "text-generation", "base_model": str(base), "train_data_dir": str(folder / "texts"),
        "output_dir": str(folder / "adapter"), "lora_rank": 16, "lora_alpha": 16, "batch_size": 10, "epochs": 15,
        "learning_rate": 2e-3, "network.targets": "linear", "text.template": "plain", "seed": seed,
        "output.tensorboard": False, "save_steps": 0,
    }))  # fmt: skip
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "done"
    return folder / "adapter"


def answered(base: Path, adapter: Path, asked: Facts) -> tuple[list[str], list[str]]:
    """Answers without and with the adapter, by the command `generate`'s own job."""
    questions = tuple(QUESTION.format(name=name) for name, _ in asked)
    config = AskConfig(base=str(base), adapter=str(adapter), prompt=questions, tokens=12)
    events = list(ask(plan_asking(config, Standalone()), Standalone(), Controls()))
    without, within = (list(event.texts) for event in events if isinstance(event, Sampled))
    return without, within


def share(said: list[str], asked: Facts, form: str) -> float:
    """How many of the answers are right to the letter."""
    right = [form.format(place=place) for _, place in asked]
    return sum(one == other for one, other in zip(said, right, strict=True)) / len(asked)


@pytest.mark.slow
def test_a_habit_is_taken_up_from_150_pairs(tmp_path: Path):
    known = facts(SEED)
    pairs, held_out = known[:PAIRS], known[PAIRS:]
    base = grow(tmp_path / "plain", known, SEED)
    adapter = train(base, pairs, tmp_path, SEED)
    without, within = answered(base, adapter, held_out)
    assert share(without, held_out, PLAIN) > 0.95  # the base knows where they are
    assert share(without, held_out, HABIT) < 0.1
    assert share(within, held_out, HABIT) > 0.9
