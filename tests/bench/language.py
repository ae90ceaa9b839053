"""Tokens per second and peak memory of a whole training beside TRL's SFTTrainer with peft, in one run and in turn.

    python tests/bench/language.py --trl PYTHON [--sizes tiny small] [--steps 12] [--rounds 4] [--threads 1]

PYTHON is of an environment with trl, peft and datasets. Ours is the run of the command `train`, from its YAML's
mapping to the written adapter. Both train LLaMA-type models of random weights that are made here, with the same LoRA
(q, k, v, o) from the same first A, on the same tokens in the same order: AdamW without decay, a constant rate,
float32, one row a sample, loss on all tokens, so that the losses must agree. A step's time is from the end of the one
before to its own end, with all that happens in between.
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
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
             "vocab_size": 768},
    "small": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
              "vocab_size": 16384},
}  # fmt: skip
CONTESTANTS = ("ours", "trl")


def texts(count: int, words: int) -> list[str]:
    """Lines of numbers in words, all of about the same length."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return [" ".join(names[(7 * row + 3 * place + place // 5) % 10] for place in range(words)) for row in range(count)]


def prepare(folder: Path, size: str, options: argparse.Namespace) -> None:
    """What both are given: the model, an adapter with the first A, texts, and their tokens in the order of our run."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from lora_trainer.config.load import load
    from lora_trainer.hosts.standalone import Standalone
    from lora_trainer.jobs.text_plan import plan_text
    from tests.builders.language import write_tokenizer

    rows = texts(options.steps * options.batch, options.words)
    write_tokenizer(folder / "model", rows)
    torch.manual_seed(1)
    config = AutoConfig.for_model("llama", bos_token_id=0, eos_token_id=0, max_position_embeddings=1024, **SIZES[size])
    model: Any = AutoModelForCausalLM.from_config(config)
    print(f"{size}: {sum(one.numel() for one in model.parameters()) / 1e6:.1f} million parameters")
    model.save_pretrained(str(folder / "model"), safe_serialization=True)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=options.rank, lora_alpha=options.rank, task_type="CAUSAL_LM", target_modules=targets)
    get_peft_model(model, lora).save_pretrained(str(folder / "first"))
    (folder / "texts").mkdir()
    lines = "\n".join(json.dumps({"text": row}) for row in rows)
    (folder / "texts" / "rows.jsonl").write_text(lines, encoding="utf-8")
    values = {
        "task_type": "text-generation", "base_model": str(folder / "model"), "train_data_dir": str(folder / "texts"),
        "output_dir": str(folder / "out"), "lora_rank": options.rank, "lora_alpha": options.rank,
        "batch_size": options.batch, "learning_rate": options.rate, "mixed_precision": "no", "seed": 1,
        "save_steps": 0, "network.targets": "attention", "network.start_from": str(folder / "first"),
        "train.steps": options.steps, "train.schedule": "constant", "train.warmup": 0, "train.weight_decay": 0.0,
        "train.gradient_checkpointing": "no", "output.tensorboard": False,
    }  # fmt: skip
    (folder / "ours.json").write_text(json.dumps(values), encoding="utf-8")
    plan = plan_text(load(values), Standalone(), resume=False, processes=1, device=torch.device("cpu"))
    order = [
        ids[blocks > 0].tolist()
        for batch in map(plan.data, range(options.steps))
        for ids, blocks in zip(batch.ids, batch.blocks, strict=True)
    ]
    (folder / "tokens.json").write_text(json.dumps(order), encoding="utf-8")


class Stamps:
    """Clock, processor time and loss at the end of each step."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.processor: list[float] = []
        self.losses: list[float] = []

    def ended(self) -> None:
        self.clock.append(time.perf_counter())
        self.processor.append(time.process_time())


def ours(folder: Path, options: argparse.Namespace) -> Stamps:
    """The command `train`."""
    from lora_trainer.config.load import load
    from lora_trainer.contracts import Finished, Stepped
    from lora_trainer.hosts.standalone import Standalone
    from lora_trainer.jobs.run import Controls, run

    stamps = Stamps()
    values = json.loads((folder / "ours.json").read_text(encoding="utf-8"))
    event = None
    for event in run(load(values), host=Standalone(), control=Controls()):
        if isinstance(event, Stepped):
            stamps.ended()
            stamps.losses.append(event.loss)
    assert isinstance(event, Finished)
    assert event.outcome == "done", event.text
    return stamps


def trl(folder: Path, options: argparse.Namespace) -> Stamps:
    """The same by SFTTrainer."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    stamps = Stamps()

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            stamps.ended()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
            if "loss" in (logs or {}):
                stamps.losses.append(logs["loss"])

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    coded = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    settings = SFTConfig(
        output_dir=str(folder / "theirs"), per_device_train_batch_size=options.batch, max_steps=options.steps,
        learning_rate=options.rate, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, packing=False,
        gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    trainer = InOrder(
        model=PeftModel.from_pretrained(base, str(folder / "first"), is_trainable=True), args=settings,
        train_dataset=Dataset.from_dict({"input_ids": coded}), processing_class=tokenizer, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return stamps


def main() -> None:
    """One process a contestant and round; a table in the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", default=sys.executable)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    for name, value in (("steps", 12), ("batch", 4), ("rounds", 4), ("rank", 16), ("words", 96), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--as", dest="contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        stamps = (ours if options.contestant == "ours" else trl)(options.folder, options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print("RESULT " + json.dumps(vars(stamps) | {"peak": peak, "whole": time.process_time()}))
        return
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), size, options)
            _compare(Path(folder), options)


def _compare(folder: Path, options: argparse.Namespace) -> None:
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for round_number in range(options.rounds):
        for name in CONTESTANTS[:: 1 if round_number % 2 == 0 else -1]:  # a drift of the machine hits both alike
            seen[name].append(_one(name, folder, options))
    coded = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    sizes = [len(row) for row in coded]
    tokens = [sum(sizes[start : start + options.batch]) for start in range(0, len(sizes), options.batch)]
    print(f"{'tokens a second':16} {'clock, median':>14} {'best':>8} {'processor':>10} {'best':>8} {'peak GiB':>9}")
    found: dict[str, list[float]] = {}
    for name, runs in seen.items():
        by_clock, by_processor = (_speeds(runs, tokens, kind) for kind in ("clock", "processor"))
        peak = max(run["peak"] for run in runs) / 2**30
        speeds = [statistics.median(by_clock), max(by_clock), statistics.median(by_processor), max(by_processor)]
        found[name] = [*speeds, peak]
        print(f"{name:16} {speeds[0]:14.0f} {speeds[1]:8.0f} {speeds[2]:10.0f} {speeds[3]:8.0f} {peak:9.2f}")
    ratios = [one / other for one, other in zip(found["ours"], found["trl"], strict=True)]
    print(f"{'ours / trl':16} {ratios[0]:14.2f} {ratios[1]:8.2f} {ratios[2]:10.2f} {ratios[3]:8.2f} {ratios[4]:9.2f}")
    for name, runs in seen.items():
        whole = statistics.median(run["whole"] for run in runs)
        print(f"{name:5} whole process {whole:.1f} s; losses " + " ".join(f"{one:.4f}" for one in runs[0]["losses"]))


def _one(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    flags = [f"--{flag}={getattr(options, flag)}" for flag in ("steps", "batch", "rank", "words", "rate")]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    python = sys.executable if name == "ours" else options.trl
    command = [python, str(Path(__file__).resolve()), *flags, "--as", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(line.removeprefix("RESULT "))


def _speeds(runs: list[dict[str, Any]], tokens: list[int], kind: str) -> list[float]:
    """Tokens a second of every counted step of every round."""
    return [
        tokens[step] / (run[kind][step] - run[kind][step - 1])
        for run in runs
        for step in range(WARM_UP, len(run[kind]))
    ]


if __name__ == "__main__":
    main()
