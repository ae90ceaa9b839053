"""How a conversation is put into words: the tokenizer's chat template, or a plain form where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast

from lora_trainer.contracts import PlainError
from lora_trainer.data.text.samples import Sample, Turn

Form = Literal["chat", "instruction", "plain"]

# The layout of Stanford Alpaca (tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT), without its first sentence.
_HEADINGS = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n", "tool": "### Tool:\n"}


class Tokenizer(Protocol):
    """What is used of transformers' tokenizers."""

    is_fast: bool
    special_tokens_map: Mapping[str, Any]
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    chat_template: Any

    def __len__(self) -> int: ...

    def __call__(self, text: str, **options: Any) -> Any: ...


class Worded(NamedTuple):
    """A sample as text, and which characters of it are answers."""

    text: str
    answers: tuple[tuple[int, int], ...]  # start and end of each


@dataclass(frozen=True)
class Wording:
    """One form for all samples of a run, and for the questions that are asked of its result."""

    form: Form
    tokenizer: Tokenizer
    reason: str  # why this form

    def worded(self, sample: Sample) -> Worded:
        """The whole sample as the model is to see it."""
        if not sample.turns:
            return Worded(sample.text, ((0, len(sample.text)),))
        return self._chat(sample) if self.form == "chat" else self._laid_out(sample.turns)

    def question(self, turns: Sequence[Turn]) -> str:
        """The text after which the model is to answer."""
        if self.form == "chat":
            return self._rendered(turns, ask=True)
        return self._laid_out([*turns, Turn("assistant", "")]).text

    def ends_itself(self) -> bool:
        """Whether the form says itself where an answer ends; else the end-of-text token does."""
        return self.form == "chat"

    def _laid_out(self, turns: Sequence[Turn]) -> Worded:
        text, spans = "", list[tuple[int, int]]()
        for turn in turns:
            if text and self.form == "instruction":
                text += "\n\n"
            text += _HEADINGS[turn.role] if self.form == "instruction" else ""
            if turn.role == "assistant":
                spans.append((len(text), len(text) + len(turn.text)))
            text += turn.text
        return Worded(text, tuple(spans))

    def _chat(self, sample: Sample) -> Worded:
        """Answers are found by what stands before and after each; templates may word an earlier turn otherwise when
        another follows, and then only its own text counts."""
        turns = sample.turns
        whole = self._rendered(turns)
        spans: list[tuple[int, int]] = []
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._rendered(turns[:index], ask=True)
            upto = self._rendered(turns[: index + 1]) if index + 1 < len(turns) else whole
            if whole.startswith(before) and whole.startswith(upto) and len(upto) > len(before):
                spans.append((len(before), len(upto)))
                continue
            start = whole.find(turn.text.strip(), spans[-1][1] if spans else 0)
            if start < 0:
                raise PlainError(
                    f"The tokenizer's chat template leaves out an answer of {sample.place}, so it cannot be learnt; "
                    "set text.template: instruction."
                )
            spans.append((start, start + len(turn.text.strip())))
        return Worded(whole, tuple(spans))

    def _rendered(self, turns: Sequence[Turn], *, ask: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        return render(self.tokenizer, messages, ask=ask)


def wording_for(asked: str, tokenizer: Tokenizer) -> Wording:
    """The form that the configuration asks for. Raises PlainError where the tokenizer has no chat template."""
    has_one = bool(template_of(tokenizer))
    if asked == "chat" and not has_one:
        raise PlainError("text.template: chat was asked, but this tokenizer has no chat template; leave it to auto.")
    if asked != "auto":
        return Wording(cast("Form", asked), tokenizer, "asked for")
    if has_one:
        return Wording("chat", tokenizer, "the tokenizer's own chat template")
    return Wording("instruction", tokenizer, "the tokenizer has no chat template")


def template_of(tokenizer: Tokenizer) -> str:
    """The chat template's Jinja text; releases of transformers that know none keep it among the settings."""
    found = getattr(tokenizer, "chat_template", None) or getattr(tokenizer, "init_kwargs", {}).get("chat_template")
    if isinstance(found, list):  # several by name, as some tokenizer_config.json have them
        named = {entry["name"]: entry["template"] for entry in cast("list[Mapping[str, str]]", found)}
        found = named.get("default", "")
    if isinstance(found, Mapping):
        found = cast("Mapping[str, str]", found).get("default", "")
    return found if isinstance(found, str) else ""


def render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, ask: bool) -> str:
    """Messages by the tokenizer's chat template, as transformers' `apply_chat_template` has it: a sandboxed Jinja
    that trims blocks, with `add_generation_prompt` and the special tokens by name. Raises PlainError."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: ""  # a date of today would make each day's run another
    known = tokenizer.special_tokens_map
    specials = {name: str(known.get(name, "")) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        return environment.from_string(template_of(tokenizer)).render(
            messages=list(messages), add_generation_prompt=ask, tools=None, documents=None, **specials
        )
    except (TemplateError, TypeError, KeyError, AttributeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise PlainError(
            f"The tokenizer's chat template does not take a conversation of {roles} ({error}); change the roles, or "
            "set text.template: instruction."
        ) from error
