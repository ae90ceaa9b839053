"""Answers to the configuration's questions while a run goes on, with the weights of the moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from lora_trainer.contracts import Sampled
from lora_trainer.data.text.samples import Sample, Turn
from lora_trainer.data.text.tokens import encode, question_ids
from lora_trainer.data.text.wording import Wording
from lora_trainer.families.language.answer import Asking, answers
from lora_trainer.families.language.load import LanguageModel
from lora_trainer.jobs.text_plan import TextPlan
from lora_trainer.weights.write import write_whole


@dataclass(frozen=True)
class AnswerMaker:
    """Implements `readied.Sampler`."""

    plan: TextPlan
    language: LanguageModel

    @property
    def wanted(self) -> bool:
        return bool(self.plan.config.samples.prompts)

    def draw(self, step: int) -> Sampled | None:
        """One text file for each prompt, with question and answer; None where no prompt is given."""
        if not self.wanted:
            return None
        plan, options = self.plan, self.plan.config
        prompts = options.samples.prompts
        asking = Asking(
            options.text.answer_tokens, options.text.temperature, options.samples.seed, endings(plan.wording)
        )
        said = answers(self.language, [asked(plan.wording, prompt) for prompt in prompts], asking)
        paths = tuple(plan.files.sample(step, index) for index in range(len(prompts)))
        for path, prompt, answer in zip(paths, prompts, said, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            text = f"{prompt}\n\n{answer}\n".encode()
            write_whole(path, lambda file, text=text: _put(file, text))
        return Sampled(step, paths, prompts, tuple(said))


def asked(wording: Wording, prompt: str, system: str = "") -> list[int]:
    """A question's tokens, worded as the samples are."""
    turns = [*([Turn("system", system)] if system else []), Turn("user", prompt)]
    return question_ids(wording.question(turns), wording)


def endings(wording: Wording) -> tuple[int, ...]:
    """Tokens that end an answer in this wording: the special one after it in a chat template."""
    if not wording.ends_itself():
        return ()
    probe = encode(Sample("", (Turn("user", "a"), Turn("assistant", "b"))), wording, "response")
    special = set(getattr(wording.tokenizer, "all_special_ids", ()))
    said = [token for token, learnt in zip(probe.ids, probe.learnt, strict=True) if learnt]
    return tuple(token for token in said if token in special)[:1]


def _put(file: BinaryIO, text: bytes) -> None:
    file.write(text)
