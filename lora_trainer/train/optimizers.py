"""The optimizer with its rates and its loss scale: everything that turns gradients into an update."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (torch and accelerate are typed in part)

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lora_trainer.config.options import OptimizerConfig
from lora_trainer.contracts import ParameterGroup, PlainError
from lora_trainer.train.average import Average
from lora_trainer.train.optimizer_kinds import KINDS, build
from lora_trainer.train.schedules import Schedule

_AVERAGE = "average."  # before the index of a parameter, among the moments


@dataclass(frozen=True)
class RatePlan:
    """Peak rate of each part and its course over the run."""

    peaks: dict[str, float]  # by part
    course: Schedule

    def at(self, step: int) -> dict[str, float]:
        """Learning rate of each part at the 0-based `step`."""
        factor = self.course.factor(step)
        return {part: peak * factor for part, peak in self.peaks.items()}


@dataclass
class LossScale:
    """Keeps fp16 gradients from vanishing: the loss is multiplied, the gradients divided again.

    torch's GradScaler decides by the gradients of its own process, before they are averaged; with several processes
    some would step and others not. Here the loop decides once, after averaging. Numbers as in GradScaler: start at
    2**16, halve on overflow, double after 2000 good steps.
    """

    scale: float = 65536.0
    good_steps: int = 0

    def update(self, finite: bool) -> None:
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good_steps == 2000:
            self.scale, self.good_steps = self.scale * 2, 0


class Updater:
    """The optimizer over the network's groups, with a loss scale where the base computes in fp16.

    A step is `zero`, `backward` for each micro-batch, `gradients`, `update`.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], rates: RatePlan, *, weight_decay: float, scale_loss: bool,
        options: OptimizerConfig | None = None, ema: float = 0.0,
    ) -> None:  # fmt: skip
        """`ema` is the decay of the weights' moving average, 0 for none. Raises PlainError where the optimizer that
        `options` name is not to be had."""
        options = options or OptimizerConfig()
        self._options, self._weight_decay = options, weight_decay
        self.rates = rates
        self._kind = KINDS[options.kind]
        self._rated = [(group.part, group.rate) for group in groups]
        self._sizes = [len(group.parameters) for group in groups]
        if self._kind.one_rate and len({factor for _, factor in self._rated}) > 1:
            raise PlainError(
                f"optimizer.kind: {self._kind.name} finds one learning rate for all parameters, but LoRA+ gives some "
                "a multiple of it; leave LoRA+ out, or take optimizer.kind: adamw."
            )
        self.parameters = [p for group in groups for p in group.parameters]
        self._optimizer = build(options, [group.parameters for group in groups], weight_decay)
        self.average = Average(self.parameters, ema) if ema > 0 else None
        self._scaled = scale_loss
        self._scale = LossScale() if scale_loss else LossScale(1.0)

    @property
    def decides_itself(self) -> bool:
        """Whether `update` can be told by a tensor on the device whether the step counts, so that nobody waits for it.

        So it is for one kernel on a CUDA device. A loss scale and a moving average have to know in the process.
        """
        on_device = all(parameter.is_cuda for parameter in self.parameters)
        return on_device and self._kind.name == "adamw" and not self._scaled and self.average is None

    @property
    def averages(self) -> bool:
        """Whether the weights to be used are others than those that are trained."""
        return self.average is not None or self._kind.averages

    @property
    def held(self) -> int:
        """Bytes of the trained weights and their average."""
        return sum(p.nbytes for p in self.parameters) + (self.average.bytes if self.average else 0)

    def zero(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        (loss * self._scale.scale if self._scale.scale != 1.0 else loss).backward()

    def gradients(self) -> list[Tensor]:
        """Gradients of the true loss (the scale taken out); a parameter that got none counts as zeros."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self._scale.scale != 1.0:
            for gradient in gradients:
                gradient.mul_(1.0 / self._scale.scale)
        return gradients

    def update(self, step: int, finite: bool | Tensor) -> dict[str, float]:
        """Move the parameters with the rates of the 0-based `step`; not finite: only the loss scale learns of it.

        A tensor (one boolean on the parameters' device) is not waited for: the optimizer's kernel looks itself.

        Returns the learning rate of each part; of an optimizer that finds it by itself, what it has found.
        """
        rates = self.rates.at(step)
        groups = self._optimizer.param_groups
        for (part, factor), group in zip(self._rated, groups, strict=True):
            group["lr"] = rates[part] * factor
        if isinstance(finite, Tensor):
            optimizer = cast(Any, self._optimizer)
            # What torch's GradScaler sets for fused optimizers (torch/amp/grad_scaler.py, _maybe_opt_step).
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
            try:
                optimizer.step()
            finally:
                del optimizer.grad_scale, optimizer.found_inf
        elif finite:
            self._optimizer.step()
            if self.average:
                self.average.take(step)
        if self._scaled and not isinstance(finite, Tensor):
            self._scale.update(finite)
        found: float = groups[0]["d"] if self._kind.one_rate else 1.0
        return {part: rate * found for part, rate in rates.items()}

    def rehearse(self) -> int:
        """Bytes that the optimizer keeps from its first step on; found out on copies, so that nothing is changed."""
        copies: list[Tensor] = []
        for parameter in self.parameters:
            copy = torch.nn.Parameter(parameter.detach().clone())
            copy.grad = torch.zeros_like(copy) if parameter.grad is None else parameter.grad.clone()
            copies.append(copy)
        rest = iter(copies)
        made = build(self._options, [[next(rest) for _ in range(size)] for size in self._sizes], self._weight_decay)
        made.step()
        return sum(value.nbytes for entry in made.state.values() for _, value in _flat(entry) if torch.is_tensor(value))

    @contextmanager
    def shown(self) -> Generator[None, None, None]:
        """Within it the parameters hold the weights to be used; after it those to be trained, bit for bit."""
        if not self.averages:
            yield
            return
        trained = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            if self.average:
                for parameter, value in zip(self.parameters, self.average.values, strict=True):
                    parameter.copy_(value)
            else:
                cast(Any, self._optimizer).eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, trained, strict=True):
                    parameter.copy_(value)
            if self._kind.averages:  # its own way back is a rounding away from where it was
                for group in self._optimizer.param_groups:
                    group["train_mode"] = True

    def overflow_is_curable(self) -> bool:
        """Whether a non-finite step may be the loss scale's doing: it was above 1 and has just been halved."""
        return self._scale.scale > 1.0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Moments by "<parameter index>.<name>" on the CPU; the loss scale, and what of the moments is no tensor."""
        whole = self._optimizer.state_dict()
        moments: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for index, entry in whole["state"].items():
            for name, value in _flat(entry):
                if isinstance(value, Tensor):
                    moments[f"{index}.{name}"] = value.detach().cpu().clone()
                else:
                    numbers[f"{index}.{name}"] = value
        groups = [
            {name: group[name] for name in self._kind.remembers if name in group} for group in whole["param_groups"]
        ]
        if self.average:
            moments |= {f"{_AVERAGE}{index}": value.cpu().clone() for index, value in enumerate(self.average.values)}
        scale = {"scale": self._scale.scale, "good_steps": self._scale.good_steps}
        more = {"kind": self._kind.name, "numbers": numbers, "groups": groups}
        return moments, scale | (more if self._kind.name != "adamw" else {})

    def load_state(self, moments: Mapping[str, Tensor], scale: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken; what another kind of optimizer left behind is passed over."""
        if self.average:
            kept = f"{_AVERAGE}0" in moments
            names = [f"{_AVERAGE}{index}" for index in range(len(self.parameters))]
            self.average.load([moments[name] for name in names] if kept else None)
        if scale.get("kind", "adamw") == self._kind.name:
            self._load_moments(moments, scale)
        self._scale = LossScale(float(scale["scale"]), int(scale["good_steps"]))

    def _load_moments(self, moments: Mapping[str, Tensor], scale: Mapping[str, Any]) -> None:
        whole = self._optimizer.state_dict()
        entries: dict[int, dict[str, Any]] = {}
        values = {key: value.clone() for key, value in moments.items() if not key.startswith(_AVERAGE)}
        for key, value in [*values.items(), *scale.get("numbers", {}).items()]:
            index, _, name = key.partition(".")
            _put(entries.setdefault(int(index), {}), name, value)
        whole["state"] = entries
        for group, kept in zip(whole["param_groups"], scale.get("groups", ()), strict=False):
            group.update(kept)
        self._optimizer.load_state_dict(whole)


def _flat(entry: Mapping[str, Any], prefix: str = "") -> Generator[tuple[str, Any], None, None]:
    """(name, value) of an optimizer's notes on one parameter; of notes in notes "outer/inner"."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _put(entry: dict[str, Any], name: str, value: Any) -> None:
    """Undo `_flat`."""
    *outer, last = name.split("/")
    for part in outer:
        entry = entry.setdefault(part, {})
    entry[last] = value
