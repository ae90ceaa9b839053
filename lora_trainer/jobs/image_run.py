"""What training an image model needs before its first step: caches filled, base adopted, network put on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain

from lora_trainer.contracts import BaseModel, Batch, Event, Host, Loss, Network, Told
from lora_trainer.data.drawn import DrawnSet
from lora_trainer.families.frozen import Hastened, hasten
from lora_trainer.families.unet import repeated_blocks
from lora_trainer.jobs.frugal import FrugalEncoder
from lora_trainer.jobs.host_control import HostControl
from lora_trainer.jobs.image_output import ImageOutput
from lora_trainer.jobs.packing import Copies
from lora_trainer.jobs.plan import Plan
from lora_trainer.jobs.readers import unheard
from lora_trainer.jobs.readied import Readied
from lora_trainer.jobs.relief import IdleParts, image_ladder
from lora_trainer.jobs.samples import SampleMaker, host_draws
from lora_trainer.jobs.sliding import Prompts, kind_of
from lora_trainer.jobs.start import starting_weights
from lora_trainer.networks.network import inject
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.held_out import HeldOut
from lora_trainer.train.pieces import Pieces
from lora_trainer.train.slider_loss import PictureSlider, PromptSlider
from lora_trainer.train.turns import Exclusive, in_turn


@dataclass
class ImageRun:
    """Implements `readied.Preparation` for a UNet and its text encoders."""

    plan: Plan
    host: Host
    control: HostControl
    begins: bool  # no state to go on from
    said: list[Told] = field(default_factory=list[Told])  # by what may not yield it itself
    prompts: Prompts | None = None  # of a slider of two prompts
    hastened: Hastened | None = None  # the UNet on a CPU

    def ready(self, borrowed: ExitStack) -> Generator[Event, None, Readied | None]:
        """Everything for the loop, or None when stop was ordered; what is put on comes off with `borrowed`."""
        plan = self.plan
        base = yield from self._prepare()
        borrowed.callback(self.control.forget_base)
        if base is None or not (yield from self._add_unet(base)):
            return None
        if self.hastened:
            borrowed.callback(self.hastened.end)
        if not (yield from self._draw_pictures(base)):
            return None
        options = replace(plan.config.network, alpha=plan.alpha)
        exclusive = self._exclusive(base)
        network = yield from in_turn(
            exclusive,
            self.control,
            lambda: inject(base.parts, options, train_parts=list(plan.rates), seed=plan.seed),
        )
        if network is None:
            return None
        borrowed.callback(network.eject)
        yield from (Told(note, "warning") for note in unheard(plan.family.name, network.state()))
        if plan.config.network.start_from and self.begins:
            told = yield from in_turn(exclusive, self.control, lambda: starting_weights(plan, network))
            if told is None:
                return None
            yield from told
        idle = IdleParts(base, self._idle(base))
        pieces, copies = Pieces(), self._copies()
        return Readied(
            batches=plan.pairs or plan.data, loss=self._loss(base, network), network=network, exclusive=exclusive,
            sampler=SampleMaker(plan, base, network, self.host, idle),
            output=ImageOutput(plan, base, self.host, exclusive), validation=_validation(plan, base, network),
            pieces=pieces, ladder=image_ladder(plan, base, self.host, pieces, idle, self.said, copies), copies=copies,
            heaviest=(plan.pairs or plan.data).heaviest, heaviest_told=plan.heaviest_told,
            blocks=repeated_blocks(base.parts["unet"]),
        )  # fmt: skip

    def _prepare(self) -> Generator[Event, None, BaseModel | None]:
        """Fill the caches; returns a base of the parts that stay for the training, or None when stopped."""
        plan = self.plan
        parts = ["vae", *plan.family.text_parts]
        base = yield from self._adopted(parts)
        if base is None:
            return None
        frozen_text = not any(part in plan.rates for part in plan.family.text_parts)
        frugal = FrugalEncoder(base, self.host.make_room, plan.smaller, self.said)
        encode_text = (lambda captions: frugal.text(captions, plan.clip_skip)) if frozen_text else None
        exclusive = self._exclusive(base)
        fingerprint = yield from in_turn(exclusive, self.control, lambda: base.fingerprint("vae"))
        sets = [plan.pairs or plan.data, *([plan.held_out] if plan.held_out else [])]
        if kind_of(plan.config) == "prompts":
            assert encode_text is not None  # `plan` leaves the text encoders frozen
            self.prompts = Prompts(plan.config.slider)
            spoken, encode_text = self.prompts.prepare(encode_text), None
        else:
            spoken = ()
        prepared = (data.prepare(frugal.images, encode_text, fingerprint=fingerprint or "") for data in sets)
        work = chain(spoken, chain.from_iterable(prepared))
        while event := (yield from in_turn(exclusive, self.control, lambda: next(work, None))):
            yield from self.overheard()
            yield event
            if self.control.take().stop:
                return None
        if self.control.stopped():
            return None
        draws = bool(plan.config.samples.prompts) and not host_draws(self.host, plan.lent)
        keeps_text = not frozen_text or draws or plan.data.encodes_while_training
        keeps_vae = draws or plan.config.data.cache == "none"
        if not keeps_text:
            base.release(*plan.family.text_parts)
        if not keeps_vae:
            base.release("vae")
        return base

    def overheard(self) -> Iterator[Told]:
        """What was said since the last call, each once."""
        while self.said:
            yield self.said.pop(0)

    def _idle(self, base: BaseModel) -> tuple[str, ...]:
        """Parts of our own that are in memory for the samples alone."""
        plan = self.plan
        if not plan.lent.owned:
            return ()
        text = () if plan.data.encodes_while_training else plan.family.text_parts
        needed = {*plan.rates, *(("vae",) if plan.config.data.cache == "none" else ())}
        return tuple(part for part in ("vae", *text) if part in base.parts and part not in needed)

    def _adopted(self, parts: Sequence[str]) -> Generator[Event, None, BaseModel | None]:
        plan = self.plan

        def adopt() -> BaseModel:
            base = plan.family.adopt(plan.lent, plan.device, plan.dtype, parts, plan.bits)
            if self.host.contended():
                base.let_go()
            return base

        return (yield from in_turn(lambda: self.host.exclusive(plan.lent, parts), self.control, adopt))

    def _add_unet(self, base: BaseModel) -> Generator[Event, None, bool]:
        """Whether it was added; not when stop was ordered."""
        with_unet = yield from self._adopted(["unet"])
        if with_unet is None:
            return False
        base.join(with_unet)
        if self.plan.device.type == "cpu":
            self.hastened = hasten(base.parts["unet"])
        return True

    def _draw_pictures(self, base: BaseModel) -> Generator[Event, None, bool]:
        """Have the base draw what a slider is learned on; False when stop was ordered meanwhile."""
        plan = self.plan
        if not isinstance(plan.data, DrawnSet) or self.prompts is None:
            return True
        exclusive, work = self._exclusive(base), plan.data.draw(self.prompts.latents(base, plan.seed))
        while event := (yield from in_turn(exclusive, self.control, lambda: next(work, None))):
            yield event
            if self.control.take().stop:
                return False
        return not self.control.stopped()

    def _copies(self) -> Copies | None:
        """Packed copies of our own base's frozen weights; for processes that go together none may choose for itself."""
        alone = self.plan.lent.owned and self.plan.processes == 1 and not self.plan.config.train.compile
        return Copies(self.hastened) if self.hastened and alone else None

    def _loss(self, base: BaseModel, network: Network) -> Loss[Batch]:
        plan, train = self.plan, self.plan.config.train
        common = (base, network, plan.seed, train.min_snr_gamma, train.noise_offset, plan.config.objective)
        if self.prompts is not None:
            return PromptSlider(*common, plan.config.slider, self.prompts)
        if plan.pairs is not None:
            return PictureSlider(*common, lambda captions: base.encode_text(captions, plan.clip_skip))
        return DiffusionLoss(
            base, plan.seed, plan.clip_skip, train.min_snr_gamma, train.noise_offset, plan.config.objective, network
        )

    def _exclusive(self, base: BaseModel) -> Exclusive:
        """The device and the base's parts as the host has them now; whoever waits for them gets them undivided."""

        @contextmanager
        def held() -> Iterator[None]:
            if self.host.contended():
                base.let_go()
            with self.host.exclusive(self.plan.lent, tuple(base.parts)):
                base.take_back()
                try:
                    yield
                finally:
                    if self.host.contended():
                        base.let_go()

        self.control.base = base
        return held


def _validation(plan: Plan, base: BaseModel, network: Network) -> HeldOut | None:
    data = plan.held_out
    if data is None:
        return None
    return HeldOut(base, network, data, lambda: len(data.items), plan.clip_skip, plan.config.validation.timesteps)
