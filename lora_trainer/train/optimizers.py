"""The optimizer with its rates and its loss scale: everything that turns gradients into an update."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (torch and accelerate are typed in part)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_trainer.contracts import ParameterGroup
from lora_trainer.train.schedules import ScheduleKind, rate_factor


@dataclass(frozen=True)
class RatePlan:
    """Peak rate of each part and its course over the run."""

    peaks: dict[str, float]  # by part
    kind: ScheduleKind
    steps: int
    warmup: int  # steps

    def at(self, step: int) -> dict[str, float]:
        """Learning rate of each part at the 0-based `step`."""
        factor = rate_factor(self.kind, step, self.steps, self.warmup)
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
    """AdamW over the network's groups, with a loss scale where the base computes in fp16.

    A step is `zero`, `backward` for each micro-batch, `gradients`, `update`.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], rates: RatePlan, *, weight_decay: float, scale_loss: bool
    ) -> None:
        self.rates = rates
        self._rated = [(group.part, group.rate) for group in groups]
        self.parameters = [p for group in groups for p in group.parameters]
        self._optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "lr": 0.0} for group in groups],
            weight_decay=weight_decay,
            fused=_one_kernel(self.parameters),
        )
        self._scaled = scale_loss
        self._scale = LossScale() if scale_loss else LossScale(1.0)

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

    def update(self, step: int, finite: bool) -> dict[str, float]:
        """Move the parameters with the rates of the 0-based `step`; not finite: only the loss scale learns of it."""
        rates = self.rates.at(step)
        for (part, factor), group in zip(self._rated, self._optimizer.param_groups, strict=True):
            group["lr"] = rates[part] * factor
        if finite:
            self._optimizer.step()
        if self._scaled:
            self._scale.update(finite)
        return rates

    def overflow_is_curable(self) -> bool:
        """Whether a non-finite step may be the loss scale's doing: it was above 1 and has just been halved."""
        return self._scale.scale > 1.0

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Moments by "<parameter index>.<name>" on the CPU, and the loss scale as plain numbers."""
        moments = {
            f"{index}.{name}": value.detach().cpu().clone()
            for index, entry in self._optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        return moments, {"scale": self._scale.scale, "good_steps": self._scale.good_steps}

    def load_state(self, moments: dict[str, Tensor], scale: dict[str, float]) -> None:
        """Go on exactly where `state` was taken."""
        whole = self._optimizer.state_dict()
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in moments.items():
            index, _, name = key.partition(".")
            entries.setdefault(int(index), {})[name] = value.clone()
        whole["state"] = entries
        self._optimizer.load_state_dict(whole)
        self._scale = LossScale(float(scale["scale"]), int(scale["good_steps"]))


def _one_kernel(parameters: Sequence[Tensor]) -> bool:
    """Whether this torch updates all parameters in one kernel: on CUDA since 2.0, on the CPU since 2.4."""
    on_cpu = all(p.device.type == "cpu" for p in parameters)
    version = tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2])
    return not on_cpu or version >= (2, 4)
