"""Whether a run's memory will suffice, told before it begins: what was measured in the last run of its shape, or else
what a step keeps as it is counted (`counting.py`), beside what is free.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lora_trainer.contracts import Judged
from lora_trainer.jobs.records import Records

if TYPE_CHECKING:
    from lora_trainer.jobs.counting import Counted
    from lora_trainer.jobs.plan import Plan
    from lora_trainer.jobs.planned import RunPlan

_FILE = "memory.json"
_KEPT = 100  # shapes of run remembered
_COUNTED = 20  # models with their networks whose count is kept
_GRADIENT_AND_WEIGHT = 2  # float32 numbers for each that is trained, besides the optimizer's

Way = Literal["checkpointing", "pieces"]
_WAYS: dict[str, Way] = {"checkpointing": "checkpointing", "halved": "pieces"}  # by the names of the ladder's rungs


class Foreseen(NamedTuple):
    """What a run will take, in bytes, and whether there is so much."""

    base: int  # weights of the base model that the run brings into memory itself
    network: int  # the LoRA's weights, gradients, moments and average
    step: int  # what the largest step keeps until its backward pass
    free: int | None  # now; None where the device does not say
    measured: bool  # in the last run of this shape, and not counted
    ways: tuple[Way, ...]  # what the run will do so that it fits
    fits: bool | None  # with them; None where nobody knows

    @property
    def whole(self) -> int:
        return self.base + self.network + self.step


def shape_of(plan: RunPlan) -> str:
    """What decides the memory of a run's largest step, as one text to remember it by."""
    config = plan.config
    network = {name: value for name, value in vars(config.network).items() if name not in ("alpha", "start_from")}
    parts = (
        plan.base_name, plan.heaviest_told, str(plan.device), plan.precision, "own" if plan.owns_base else "lent",
        sorted(network.items()), sorted(plan.rates), config.optimizer.kind, config.train.ema > 0, config.model.quantize,
        config.text.quantize, config.objective.preserve > 0, bool(config.slider.positive), bool(config.slider.opposite),
        config.train.gradient_checkpointing, config.train.attention_slicing, config.data.cache == "none",
    )  # fmt: skip
    return repr(parts)


class Foresight:
    """Knows what runs took, and what models would; any thread may ask."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.Lock()
        known = records.recall(_FILE)
        self._known: dict[str, dict[str, Any]] = known if isinstance(known, dict) else {}
        self._counted: dict[str, Counted] = {}

    def learn(self, shape: str, judged: Judged) -> None:
        """Remember what a run's heaviest step has shown."""
        with self._lock:
            self._known.pop(shape, None)
            self._known[shape] = {
                "step": judged.step, "network": judged.network + judged.kept, "measures": list(judged.measures),
            }  # fmt: skip
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
            known = dict(self._known)
        self._records.remember(_FILE, known)

    def known(self, plan: Plan) -> Foreseen | None:
        """What can be told at once; None where `foresee` has to count first."""
        with self._lock:
            last, counted = self._known.get(shape_of(plan)), self._counted.get(_model_of(plan))
        if last is not None:
            return _as_measured(plan, last)
        return _judged(plan, counted) if counted and _countable(plan) else None

    def foresee(self, plan: Plan) -> Foreseen | None:
        """The same, counted if need be; None on devices of which nothing is known before they have tried it."""
        found = self.known(plan)
        if found or not _countable(plan):
            return found
        from lora_trainer.jobs.counting import count

        counted = count(plan)
        with self._lock:
            self._counted[_model_of(plan)] = counted
            while len(self._counted) > _COUNTED:
                del self._counted[next(iter(self._counted))]
        return _judged(plan, counted)


def _countable(plan: Plan) -> bool:
    """Whether a step grows with its pixels: where the attention keeps a score for each pair of them it does not."""
    from lora_trainer.families.thrift import attention_keeps_scores

    if plan.device.type not in ("cpu", "cuda") or plan.config.train.attention_slicing == "yes":
        return False
    return not attention_keeps_scores(plan.device, plan.dtype)


def _model_of(plan: Plan) -> str:
    """What decides the count: the same for pictures of all sizes."""
    return repr((plan.base_name, plan.lent.path, plan.config.network, sorted(plan.rates), plan.dtype, plan.device))


def _as_measured(plan: Plan, last: Mapping[str, Any]) -> Foreseen:
    ways: tuple[Way, ...] = tuple(_WAYS[name] for name in last["measures"] if name in _WAYS)
    base, free = _base_bytes(plan), _free(plan)
    whole = base + int(last["network"]) + int(last["step"])
    return Foreseen(base, int(last["network"]), int(last["step"]), free, True, ways, _goes_into(whole, free))


def _judged(plan: Plan, counted: Counted) -> Foreseen:
    """The first way to go about it that fits, in the order of the run's own ladder."""
    from lora_trainer.train.optimizer_kinds import KINDS

    numbers = _GRADIENT_AND_WEIGHT + KINDS[plan.config.optimizer.kind].keeps + (plan.config.train.ema > 0)
    base, network, free = _base_bytes(plan), round(counted.weights * 4 * numbers), _free(plan)
    asked = plan.config.train.gradient_checkpointing
    checkpointing: tuple[Way, ...] = ("checkpointing",) if asked != "no" else ()
    pieces: tuple[Way, ...] = ("pieces",) if plan.config.data.batch_size > 1 else ()
    tries: list[tuple[Way, ...]] = [checkpointing, checkpointing + pieces]
    if asked != "yes":
        tries.insert(0, ())
    for ways in dict.fromkeys(tries):
        step = _step_bytes(plan, counted, ways)
        fits = _goes_into(base + network + step, free)
        if fits is not False:
            break
    return Foreseen(base, network, step, free, False, ways, fits)


def _step_bytes(plan: Plan, counted: Counted, ways: Sequence[Way]) -> int:
    line = counted.checkpointed if "checkpointing" in ways else counted.plain
    width, height = max(plan.data.bucket_counts(), key=lambda size: size[0] * size[1])
    samples = 1 if "pieces" in ways else plan.config.data.batch_size
    config = plan.config
    # A slider goes both ways in one pass; keeping the base's own pictures is a second pass.
    twice = 2 if config.objective.preserve > 0 or config.slider.positive or config.slider.opposite else 1
    return round(line.at((width // 8) * (height // 8)) * samples * twice) + counted.scratch


def _base_bytes(plan: Plan) -> int:
    """Of the parts that a run with a base of its own keeps while it trains; a WebUI's model is in memory already."""
    if not plan.lent.owned:
        return 0
    from lora_trainer.families.few_bits import BYTES_A_WEIGHT
    from lora_trainer.families.ldm_names import UNET_PREFIX, VAE_PREFIX

    with_text = plan.text_rate > 0 or plan.data.encodes_while_training
    unet = BYTES_A_WEIGHT[plan.bits] if plan.bits else plan.dtype.itemsize
    whole = 0.0
    for name, info in plan.lent.header.items():
        if name.startswith(UNET_PREFIX):
            whole += math.prod(info.shape) * unet
        elif with_text and not name.startswith(VAE_PREFIX):
            whole += math.prod(info.shape) * plan.dtype.itemsize
    return round(whole)


def _free(plan: Plan) -> int | None:
    from lora_trainer.train.memory import room

    there = room(plan.device)
    return there.free if there else None


def _goes_into(whole: int, free: int | None) -> bool | None:
    from lora_trainer.train.rehearsal import MARGIN

    return None if free is None else whole * MARGIN <= free
