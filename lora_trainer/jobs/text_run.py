"""What training a language model needs before its first step: base loaded, network put on, packing tried."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_trainer.contracts import Control, Event, Host, LentModel, ModelFacts, PlainError, Told
from lora_trainer.families.language.load import LanguageModel, load
from lora_trainer.families.thrift import recompute_activations
from lora_trainer.jobs.readied import Readied
from lora_trainer.jobs.relief import halving
from lora_trainer.jobs.text_output import TextOutput
from lora_trainer.jobs.text_plan import TextPlan
from lora_trainer.jobs.text_samples import AnswerMaker
from lora_trainer.networks.low_rank import RowDora
from lora_trainer.networks.network import AdaptedNetwork, inject
from lora_trainer.networks.peft_folder import PART, read_adapter
from lora_trainer.networks.start import start_from
from lora_trainer.train.ladder import CHECKPOINTING, Ladder, Rung
from lora_trainer.train.pieces import Pieces
from lora_trainer.train.text_loss import HeldOutTexts, TextLoss, mask_form
from lora_trainer.train.turns import Exclusive, in_turn


@dataclass
class TextRun:
    """Implements `readied.Preparation` for a causal language model."""

    plan: TextPlan
    host: Host
    control: Control
    begins: bool  # no state to go on from

    def ready(self, borrowed: ExitStack) -> Generator[Event, None, Readied | None]:
        """Everything for the loop, or None when stop was ordered; layers and memory are given back with `borrowed`."""
        plan = self.plan
        if plan.config.model.aside:
            borrowed.enter_context(self.host.aside())
        exclusive = self._exclusive()
        language = yield from in_turn(exclusive, self.control, self._loaded)
        if language is None:
            return None
        options = replace(plan.config.network, alpha=plan.alpha)
        network = yield from in_turn(
            exclusive,
            self.control,
            lambda: inject({PART: language.model}, options, train_parts=[PART], seed=plan.seed, dora=RowDora),
        )
        if network is None:
            return None
        borrowed.callback(network.eject)
        yield Told(_targets_told(network))
        if plan.config.network.start_from and self.begins:
            yield from _starting_weights(plan, network)
        loss = TextLoss(language.model, plan.device, plan.seed, network)
        if plan.config.text.packing:
            with exclusive():
                loss = replace(loss, packed=_packed(plan, loss))
        pieces = Pieces(of_sums=True)
        return Readied(
            batches=plan.data, loss=loss, network=network, exclusive=exclusive,
            sampler=AnswerMaker(plan, language), output=TextOutput(plan, language.model),
            validation=HeldOutTexts(loss, plan.held_out) if plan.held_out else None,
            pieces=pieces, ladder=_ladder(plan, language, self.host, pieces),
            heaviest=plan.data.heaviest, heaviest_told=plan.heaviest_told,
        )  # fmt: skip

    def _loaded(self) -> LanguageModel:
        plan = self.plan
        return load(plan.facts, plan.device, plan.dtype, plan.config.text.quantize)

    def _exclusive(self) -> Exclusive:
        """The host's device by turns; nothing of its model is lent."""
        lent = LentModel({}, {}, ModelFacts("causal_lm", "epsilon", False, ""), self.plan.facts.name, None, owned=True)
        return lambda: self.host.exclusive(lent, ())


def _targets_told(network: AdaptedNetwork) -> str:
    ending = ".lora_down.weight"
    names = [name.removesuffix(ending).partition(".")[2] for name in network.state() if name.endswith(ending)]
    kinds = sorted({name.rpartition(".")[2] for name in names})
    return f"The LoRA is put on {len(names)} layers: {', '.join(kinds)}."


def _starting_weights(plan: TextPlan, network: AdaptedNetwork) -> Iterator[Told]:
    folder = Path(plan.config.network.start_from or "").expanduser()
    state, _ = read_adapter(folder)
    for sentence in start_from(network, state, seed=plan.seed, source=folder.name):
        yield Told(sentence)


def _packed(plan: TextPlan, loss: TextLoss) -> Any:
    """The form of mask that keeps samples in one row apart, tried on two short samples of the data."""
    form = mask_form(loss, *plan.data.probe())
    if form is None:
        import transformers

        raise PlainError(
            f"text.packing was asked, but {plan.facts.architecture} under transformers {transformers.__version__} lets "
            "samples in one row see each other; set text.packing: false."
        )
    return form


def _ladder(plan: TextPlan, language: LanguageModel, host: Host, pieces: Pieces) -> Ladder:
    """What is done where memory does not suffice, the cheapest first; recomputing at once where it was asked for."""
    train = plan.config.train

    def recompute() -> str:
        if train.gradient_checkpointing == "no" or not recompute_activations(language.model):
            return ""
        return "activations are computed anew in the backward pass (gradient checkpointing)"

    if train.gradient_checkpointing == "yes":
        recompute()
    rungs = (
        Rung(CHECKPOINTING, recompute, lambda: {"train.gradient_checkpointing": "yes"}),
        halving(plan.config.data.batch_size, train.gradient_accumulation_steps, pieces),
    )
    return Ladder(plan.device, rungs, host.make_room)
