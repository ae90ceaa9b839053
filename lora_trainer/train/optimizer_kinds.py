"""The optimizers to choose from: where each comes from, what it wants, and what stands in where it is missing."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportMissingImports=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch is typed in part, the optional libraries not at all)

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_trainer.config.options import OptimizerConfig
from lora_trainer.contracts import PlainError

Groups = list[dict[str, Any]]  # as torch's optimizers take them: {"params": [...], "lr": ...}


class OptimizerKind(NamedTuple):
    """One choice of `optimizer.kind`."""

    name: str
    title: str  # as its authors spell it
    module: str  # that has to be importable
    package: str  # that brings it
    build: Callable[[Any, Groups, float, OptimizerConfig], torch.optim.Optimizer]  # module, groups, weight decay
    rates: tuple[float, float]  # peak learning rates of a LoRA that make sense with it
    advice: str  # where the rate lies outside, as the end of a sentence
    keeps: float  # float32 numbers for each trained one, about, at the usual ranks
    nearest: tuple[str, ...] = ()  # kinds that come closest to it, best first
    remembers: tuple[str, ...] = ()  # what it keeps in its groups besides its moments
    averages: bool = False  # shows other weights than those it trains; has no schedule
    one_rate: bool = False  # finds a rate by itself, the same for all parameters


def _adamw(module: Any, groups: Groups, weight_decay: float, options: OptimizerConfig) -> torch.optim.Optimizer:
    return module.AdamW(groups, weight_decay=weight_decay, fused=one_kernel([p for g in groups for p in g["params"]]))


def _adafactor(module: Any, groups: Groups, weight_decay: float, options: OptimizerConfig) -> torch.optim.Optimizer:
    """With a rate from outside: its own course is made for training from scratch (its docstring's advice)."""
    return module.Adafactor(
        groups, lr=1.0, weight_decay=weight_decay, scale_parameter=False, relative_step=False, warmup_init=False
    )


def _prodigy(module: Any, groups: Groups, weight_decay: float, options: OptimizerConfig) -> torch.optim.Optimizer:
    """With what its authors advise for diffusion models: bias correction, and warm-up kept out of the estimate."""
    made = module.Prodigy(
        groups, lr=1.0, use_bias_correction=True, safeguard_warmup=True, d_coef=options.prodigy_coefficient
    )
    for group in made.param_groups:
        group["weight_decay"] = weight_decay  # given to the constructor it would be printed
    return made


def _schedule_free(module: Any, groups: Groups, weight_decay: float, options: OptimizerConfig) -> torch.optim.Optimizer:
    made = module.AdamWScheduleFree(groups, lr=1.0, weight_decay=weight_decay)
    made.train()  # until it is told so it refuses to step
    return made


def _plain(name: str) -> Callable[[Any, Groups, float, OptimizerConfig], torch.optim.Optimizer]:
    def build(module: Any, groups: Groups, weight_decay: float, options: OptimizerConfig) -> torch.optim.Optimizer:
        return getattr(module, name)(groups, lr=1.0, weight_decay=weight_decay)

    return build


_BIGGER = "the usual rates are 1e-5 to 1e-3"
_LISTED = (
    OptimizerKind("adamw", "AdamW", "torch.optim", "torch", _adamw, (1e-6, 5e-3), _BIGGER, 2),
    OptimizerKind(
        "adamw8bit", "AdamW8bit", "bitsandbytes.optim", "bitsandbytes", _plain("AdamW8bit"), (1e-6, 5e-3), _BIGGER, 0.5,
        nearest=("adafactor", "adamw"),
    ),
    OptimizerKind(
        "adafactor", "Adafactor", "transformers.optimization", "transformers", _adafactor, (1e-6, 5e-3), _BIGGER, 0.1,
        nearest=("adamw",),
    ),
    OptimizerKind(
        "lion", "Lion", "lion_pytorch", "lion-pytorch", _plain("Lion"), (1e-7, 2e-4),
        "it wants a third to a tenth of AdamW's, 1e-5 to 3e-5", 1, nearest=("adamw",),
    ),  # Chen et al. 2023, arXiv 2302.06675, section 5
    OptimizerKind(
        "prodigy", "Prodigy", "prodigyopt", "prodigyopt", _prodigy, (0.1, 10.0),
        "it finds the rate by itself and multiplies it by this, so set it to 1", 4, nearest=("schedule_free", "adamw"),
        remembers=("d", "d_max", "d_numerator", "d_denom", "d_hat", "k"), one_rate=True,
    ),
    OptimizerKind(
        "schedule_free", "AdamWScheduleFree", "schedulefree", "schedulefree", _schedule_free, (1e-5, 2e-2),
        "it wants one to ten times AdamW's, 1e-4 to 1e-3", 2, nearest=("adamw",),
        remembers=("k", "lr_max", "weight_sum", "scheduled_lr", "train_mode"), averages=True,
    ),  # facebookresearch/schedule_free, README
    OptimizerKind(
        "came", "CAME", "came_pytorch", "came-pytorch", _plain("CAME"), (1e-6, 2e-3), _BIGGER, 1.2,
        nearest=("adafactor", "adamw"),
    ),
)  # fmt: skip
KINDS: Mapping[str, OptimizerKind] = MappingProxyType({kind.name: kind for kind in _LISTED})


def build(options: OptimizerConfig, groups: Sequence[Sequence[Tensor]], weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer over these groups of parameters, all at rate 0 yet.

    Raises PlainError where its library is missing or does not work; never another one in its place.
    """
    kind = KINDS[options.kind]
    try:
        module = importlib.import_module(kind.module)
        made = kind.build(module, [{"params": list(group)} for group in groups], weight_decay, options)
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
        raise PlainError(_unusable(kind, error)) from error
    for group in made.param_groups:
        group["lr"] = 0.0
    return made


def check(options: OptimizerConfig, device: torch.device) -> None:
    """Try the optimizer on a handful of numbers. Raises PlainError where its library is missing or does not work."""
    if options.kind == "adamw":
        return
    kind = KINDS[options.kind]
    trial = torch.nn.Parameter(torch.ones(64, 64, device=device))  # 8-bit moments begin at 4096 numbers
    made = build(options, [[trial]], 0.0)
    trial.grad = torch.full_like(trial, 0.5)
    try:
        made.param_groups[0]["lr"] = 1e-3
        made.step()
    except Exception as error:  # whatever a foreign library raises: it does not work here
        raise PlainError(_unusable(kind, error)) from error


def _unusable(kind: OptimizerKind, error: Exception) -> str:
    """What was asked, what was found, and both ways out."""
    missing = isinstance(error, ModuleNotFoundError)
    if missing:
        found = f"the package {kind.package} is not installed"
        remedy = f"install it ({sys.executable} -m pip install {kind.package})"
    else:
        words = " ".join(str(error).split())[:200].rstrip(".")
        found = f"{kind.package} does not work here ({words})"
        remedy = "mend or update it"
    other = next((name for name in kind.nearest if _there(KINDS[name])), "adamw")
    return (
        f"optimizer.kind: {kind.name} was asked, but {found}; {remedy}, or take the nearest that is here, "
        f"optimizer.kind: {other}."
    )


def _there(kind: OptimizerKind) -> bool:
    try:
        importlib.import_module(kind.module)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def one_kernel(parameters: Sequence[Tensor]) -> bool:
    """Whether this torch updates all parameters in one kernel: on CUDA since 2.0, on the CPU since 2.4."""
    on_cpu = all(p.device.type == "cpu" for p in parameters)
    version = tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2])
    return not on_cpu or version >= (2, 4)
