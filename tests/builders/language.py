"""Small language models of the real architectures in transformers' own folders, with a byte-level BPE tokenizer that
is trained here; and a whole small run on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_trainer.config.load import load
from lora_trainer.config.options import RunConfig

END = "<|end|>"
CHAT = (  # the layout of ChatML, as Qwen's template has it
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "the lighthouse keeper counts seven boats at dawn and writes every name into a blue book",
    "a baker sells bread rolls and plum cake while rain drums on the tin roof of the shop",
    "what does the sign at the harbour say today, and who painted it last summer?",
    "### Instruction: ### Response: user assistant system",
)


def write_tokenizer(folder: Path, texts: Iterable[str] = WORDS, *, chat: str = "", vocabulary: int = 400) -> Any:
    """Train a byte-level BPE tokenizer (GPT-2's kind) and save it as transformers does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    specials = [END, "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue]
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(list(texts), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.save_pretrained(str(folder))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if chat:  # by hand: the releases differ in which file they write it to
        settings["chat_template"] = chat
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tokenizer


def write_model(folder: Path, kind: str = "llama", *, seed: int = 1, chat: str = "", **sizes: Any) -> Path:
    """A model of that kind with random weights, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = write_tokenizer(folder, chat=chat)
    narrow = _SIZES["gpt2" if kind == "gpt2" else "gpt_neox" if kind == "gpt_neox" else "llama"] | sizes
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + 16, bos_token_id=0, eos_token_id=0, **narrow)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # the usual first weights are too small for anything to show
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(str(folder), safe_serialization=True)
    return folder


_SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "max_position_embeddings": 256},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "max_position_embeddings": 256},
}  # fmt: skip


def write_pairs(folder: Path, count: int = 12) -> Path:
    """Questions with answers of various lengths, as JSON Lines."""
    folder.mkdir(parents=True, exist_ok=True)
    words = " ".join(WORDS).split()
    lines = [
        json.dumps({"prompt": f"What is number {n}?", "response": " ".join(words[n : n + 3 + n % 5])})
        for n in range(count)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def text_run(folder: Path, kind: str = "llama", *, prompts: Sequence[str] = (), **options: Any) -> RunConfig:
    """A run of 6 steps that takes a second; `options` are dotted names with "__" for the dot."""
    base, texts = folder / kind, folder / "texts"
    if not base.exists():
        write_model(base, kind)
    if not texts.exists():
        write_pairs(texts)
    values = {
        "task": "text-generation",
        "model.base": str(base),
        "data.folder": str(texts),
        "data.batch_size": 2,
        "network.rank": 4,
        "train.steps": 6,
        "train.learning_rate": 1e-2,
        "train.seed": 11,
        "output.directory": str(folder / "out" / "adapter"),
        "output.save_steps": 2,
        "output.precision": "fp32",
        "output.tensorboard": False,
        **({"samples.prompts": list(prompts), "text.answer_tokens": 8} if prompts else {}),
    }
    return load(values | {name.replace("__", "."): value for name, value in options.items()})
