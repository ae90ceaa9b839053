"""What a step will keep in memory, counted before anything is loaded: the model without its weights, gone through once.

On torch's `meta` device tensors have shapes and no values, so that the pass costs a second and no memory. What autograd
saves in it for the backward pass is what the real one saves; what kernels need for themselves is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lora_trainer.contracts import BaseModel, Batch, LentModel, TextStates
from lora_trainer.jobs.plan import Plan
from lora_trainer.networks.network import inject
from lora_trainer.train.diffusion_loss import DiffusionLoss

# Latent cells (h, w) of the two pictures that are counted; both can be halved three times. What is kept is so much for
# a sample and so much for each of its cells, as long as attention keeps no score for each pair of them.
_SMALL, _LARGE = (24, 40), (48, 80)
_TOKENS = 77  # of one chunk of a caption
_SIZE_IDS = 6 * 256  # of SDXL's vector: six sizes in 256 waves each
# What gradient checkpointing computes anew as one (diffusers and transformers), by the class's name.
_UNITS = ("ResnetBlock2D", "BasicTransformerBlock", "CLIPEncoderLayer")
# What autocast on CUDA computes in float32 (torch's docs, "CUDA ops that can autocast to float32"), and what follows.
_FULL = (functional.group_norm, functional.layer_norm, functional.silu)


class Line(NamedTuple):
    """Bytes of a sample, by the latent cells that it has."""

    a_sample: float
    a_cell: float

    def at(self, cells: int) -> float:
        """Of a sample with so many."""
        return self.a_sample + self.a_cell * cells


class Counted(NamedTuple):
    """Bytes that a sample keeps until its backward pass, and the size of the network."""

    plain: Line
    checkpointed: Line  # with gradient checkpointing: at the highest in the backward pass
    weights: int  # numbers that are trained
    scratch: int  # a kernel's own copy of the largest weight, on a CPU


def count(plan: Plan) -> Counted:
    """Go through one step of the plan's model on small pictures; for attention that keeps no scores (`foresight`)."""
    base = _hollow(plan)
    # Without what needs values: the base's own directions to begin with, and chance.
    options = replace(
        plan.config.network, alpha=plan.alpha, init="default", dropout=0.0, rank_dropout=0.0, module_dropout=0.0
    )
    network = inject(base.parts, options, train_parts=list(plan.rates), seed=plan.seed)
    size = torch.empty((), dtype=plan.dtype).element_size()
    loss = DiffusionLoss(base, plan.seed, plan.clip_skip, 0.0, 0.0, network=network)
    found: list[tuple[int, int]] = []
    for sides in (_SMALL, _LARGE):
        tally = _Tally(size, plan.device.type == "cuda", _storages(base))
        with tally.listening(base.parts.values()), tally:
            loss(_batch(base, plan, sides))
        found.append((tally.whole(), tally.checkpointed()))
    trained = sum(parameter.numel() for group in network.groups() for parameter in group.parameters)
    plain, checkpointed = (_line(small, large) for small, large in zip(*found, strict=True))
    return Counted(plain, checkpointed, trained, _scratch(base, plan))


def _line(small: int, large: int) -> Line:
    few, many = (height * width for height, width in (_SMALL, _LARGE))
    a_cell = (large - small) / (many - few)
    return Line(small - a_cell * few, a_cell)


def _scratch(base: BaseModel, plan: Plan) -> int:
    """oneDNN lays a convolution's weight out anew for each use (`families.frozen_convolution`)."""
    if plan.device.type != "cpu":
        return 0
    convolutions = (m.weight for part in base.parts.values() for m in part.modules() if isinstance(m, nn.Conv2d))
    return max((weight.numel() for weight in convolutions), default=0) * plan.dtype.itemsize


def _hollow(plan: Plan) -> BaseModel:
    """The trained parts of the base in float32 on `meta`."""
    header, lent = plan.lent.header, plan.lent
    tensors = {name: torch.empty(info.shape, device="meta") for name, info in header.items()}
    hollow = LentModel(tensors, header, lent.facts, lent.name, None, owned=True)
    return plan.family.adopt(hollow, torch.device("meta"), torch.float32, list(plan.rates))


def _batch(base: BaseModel, plan: Plan, sides: tuple[int, int]) -> Batch:
    settings = getattr(base.parts["unet"], "config")  # noqa: B009 - diffusers', which nn.Module does not know
    text = None
    if not plan.text_rate:
        pooled = settings.projection_class_embeddings_input_dim
        text = TextStates(
            torch.zeros(1, _TOKENS, settings.cross_attention_dim),
            torch.zeros(1, pooled - _SIZE_IDS) if pooled else None,
        )
    return Batch((0,), torch.zeros(1, 4, *sides), ("",), text, torch.zeros(1, 6), torch.ones(1))


def _storages(base: BaseModel) -> set[int]:
    """Those of the weights, which are kept in any case."""
    return {p.untyped_storage()._cdata for part in base.parts.values() for p in part.parameters()}


@dataclass
class _Tally(TorchFunctionMode):
    """Adds up what autograd saves, once for each piece of memory, by the unit in which it was saved."""

    half: int  # bytes of a number in the base's precision
    autocast: bool  # to that precision as on CUDA, where norms are in float32
    _weights: set[int]
    _saved: dict[tuple[int, bool], tuple[int, int]] = field(default_factory=dict[tuple[int, bool], tuple[int, int]])
    _alive: list[Tensor] = field(default_factory=list[Tensor])  # so that no address is given twice
    _unit: int = 0  # 0: none
    _units: int = 0
    _inputs: int = 0  # bytes that go into units
    _full: bool = False
    _within: bool = False  # attention

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.full and isinstance(args[1], Tensor):
            args = (args[0], 0.0, *args[2:])  # older transformers' mask, filled with a number that has no value here
        outside = self._full, self._within
        self._full = self.autocast and function in _FULL
        self._within = function is functional.scaled_dot_product_attention
        try:
            out = function(*args, **kwargs)
            if self._within:
                for tensor in (*args[:3], out):
                    self._take(tensor)
            return out
        finally:
            self._full, self._within = outside

    @contextmanager
    def listening(self, parts: Any) -> Iterator[None]:
        """Within it what is saved is added up."""
        modules = [m for part in parts for m in part.modules() if type(m).__name__ in _UNITS]
        hooks = [m.register_forward_pre_hook(self._enter) for m in modules]
        hooks += [m.register_forward_hook(self._leave) for m in modules]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def whole(self) -> int:
        """Bytes kept at the end of the forward pass."""
        return sum(size for _, size in self._saved.values())

    def checkpointed(self) -> int:
        """Bytes at the highest where units keep their inputs only, and each is computed again by itself."""
        by_unit: dict[int, int] = {}
        for unit, size in self._saved.values():
            by_unit[unit] = by_unit.get(unit, 0) + size
        outside = by_unit.pop(0, 0)
        return outside + self._inputs + max(by_unit.values(), default=0)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._units += 1
        self._unit = self._units
        self._inputs += sum(one.numel() * self.half for one in args[:1] if isinstance(one, Tensor))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._unit = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        if not self._within:
            self._take(tensor)
        return tensor

    def _take(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._weights or not tensor.is_floating_point():
            return
        full = self._full or not self.autocast
        each = 4 if self._full else self.half
        if (address, full) not in self._saved:
            self._saved[address, full] = self._unit, storage.nbytes() // tensor.element_size() * each
            self._alive.append(tensor)
