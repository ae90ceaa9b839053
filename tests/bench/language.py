"""Tokens per second and peak memory of ours beside TRL's SFTTrainer with peft, in one run and in turn: A B, A B.

    python tests/bench/language.py MODEL_FOLDER [--trl PYTHON] [--steps 12] [--batch 4] [--rounds 2] [--rank 8]

MODEL_FOLDER is a transformers folder with tokenizer; --trl the Python of an environment with trl, peft and datasets.
Both train the same LoRA (q, k, v, o) on rows in the order in which they stand: AdamW without decay, a constant rate,
float32, one row a sample, loss on all tokens. LoRA's own first weights differ (A is drawn), and with B = 0 both begin
at the base's loss.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 2  # steps of each process that are not counted


def texts(count: int, words: int) -> list[str]:
    """Lines of numbers in words, all of about the same length."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return [" ".join(names[(7 * row + 3 * place + place // 5) % 10] for place in range(words)) for row in range(count)]


def ours(options: argparse.Namespace, rows: list[str]) -> dict[str, Any]:
    """Losses and seconds of each step, by the parts that a run is made of; the data order is that of the rows."""
    import torch

    from lora_trainer.config.options import NetworkConfig
    from lora_trainer.data.text.dataset import TextData
    from lora_trainer.data.text.tokens import Encoded
    from lora_trainer.families.language.load import load, pad_of
    from lora_trainer.families.language.recognise import recognise
    from lora_trainer.networks.network import inject
    from lora_trainer.networks.peft_folder import PART
    from lora_trainer.train.text_loss import TextLoss

    cpu = torch.device("cpu")
    language = load(recognise(Path(options.model)), cpu, torch.float32)
    network = inject(
        {PART: language.model}, NetworkConfig(rank=options.rank, alpha=options.rank), train_parts=[PART], seed=1
    )
    coded = [Encoded(tuple(ids), (True,) * len(ids)) for ids in language.tokenizer(rows)["input_ids"]]
    data = TextData(coded, batch_size=options.batch, seed=0, pad=pad_of(language.tokenizer))
    parameters = [one for group in network.groups() for one in group.parameters]
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, weight_decay=0.0)
    loss = TextLoss(language.model, cpu, 0, network)
    losses, seconds, tokens = [], [], []
    for step in range(options.steps):
        chosen = [(step * options.batch + place) % len(coded) for place in range(options.batch)]
        begun = time.perf_counter()
        batch = data.batch([(number,) for number in chosen], tuple(chosen), 1.0)
        count = int(batch.learnt.sum())
        value = loss(batch) / count
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
        seconds.append(time.perf_counter() - begun)
        tokens.append(int((batch.blocks > 0).sum()))
    return {"losses": losses, "seconds": seconds, "tokens": tokens}


def trl(options: argparse.Namespace, rows: list[str]) -> dict[str, Any]:
    """The same by SFTTrainer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            seconds.append(time.perf_counter() - self.begun)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
            if "loss" in (logs or {}):
                losses.append(logs["loss"])

    seconds: list[float] = []
    losses: list[float] = []
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    coded = tokenizer(rows)["input_ids"]
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=options.batch, max_steps=options.steps,
            learning_rate=options.rate, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, packing=False,
            gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = InOrder(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32), args=settings,
            train_dataset=Dataset.from_dict({"input_ids": coded}), processing_class=tokenizer, callbacks=[Clock()],
            peft_config=LoraConfig(r=options.rank, lora_alpha=options.rank, task_type="CAUSAL_LM",
                                   target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        )  # fmt: skip
        trainer.train()
    sizes = [len(coded[number % len(coded)]) for number in range(options.steps * options.batch)]
    tokens = [sum(sizes[start : start + options.batch]) for start in range(0, len(sizes), options.batch)]
    return {"losses": losses, "seconds": seconds, "tokens": tokens}


def main() -> None:
    """One process a contestant and round; a table in the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--trl", default=sys.executable)
    for name, value in (("steps", 12), ("batch", 4), ("rounds", 2), ("rank", 8), ("words", 96)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--as", dest="contestant", choices=("ours", "trl"))
    options = parser.parse_args()
    if options.contestant:
        rows = texts(options.steps * options.batch, options.words)
        found = (ours if options.contestant == "ours" else trl)(options, rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print("RESULT " + json.dumps(found | {"peak": peak, "processor": time.process_time()}))
        return
    _compare(options)


def _compare(options: argparse.Namespace) -> None:
    seen: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    flags = [f"--{name}={getattr(options, name)}" for name in ("steps", "batch", "rank", "words", "rate")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    for _ in range(options.rounds):
        for name, python in (("ours", sys.executable), ("trl", options.trl)):
            command = [python, str(Path(__file__).resolve()), options.model, *flags, "--as", name]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            if line is None:
                raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            seen[name].append(json.loads(line.removeprefix("RESULT ")))
    speed = {
        name: statistics.median(
            tokens / seconds
            for run in runs
            for tokens, seconds in list(zip(run["tokens"], run["seconds"], strict=True))[WARM_UP:]
        )
        for name, runs in seen.items()
    }
    peak = {name: max(run["peak"] for run in runs) for name, runs in seen.items()}
    for name in seen:
        print(f"{name:5} {speed[name]:9.0f} tokens/s  peak {peak[name] / 2**30:.2f} GiB")
    print(f"ours / trl: {speed['ours'] / speed['trl']:.2f} in speed, {peak['ours'] / peak['trl']:.2f} in peak memory")
    for name, runs in seen.items():
        print(f"{name:5} losses " + " ".join(f"{loss:.4f}" for loss in runs[0]["losses"]))


if __name__ == "__main__":
    main()
