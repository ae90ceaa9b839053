"""Tensors put into modules that were built on the `meta` device: no copy where device and dtype agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lora_trainer.contracts import LdmPlace, ModelAway, PlainError
from lora_trainer.families.few_bits import Bits, hold, suits

View = Callable[[Tensor], Tensor]  # another shape on the same storage: rows, a turned matrix


class _Placed(NamedTuple):
    owner: nn.Module
    leaf: str
    key: str
    view: View
    empty: nn.Parameter  # on `meta`: what stands there while the tensors are let go


class Loan:
    """The tensors that one part stands on.

    Owned ones (read from a file) are converted to the device and dtype asked for. A host's are never copied as a
    whole: where their dtype is another, each module computes with a copy that lives as long as its forward; and they
    can be let go between two steps and taken back, wherever the host has put them meanwhile.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype, *, owned: bool = True,
        bits: Bits | None = None,
    ) -> None:  # fmt: skip
        """`bits`: hold large weights in so few; only owned ones, a host's stay as they are."""
        if bits and not owned:
            raise ValueError("a host's weights cannot be held in few bits")
        self._bits: Bits | None = bits
        self.device = device
        self.dtype = dtype
        self._tensors = tensors
        self._owned = owned
        self._placed: list[_Placed] = []  # stays empty where owned, so that a released part is freed
        self._casting: set[nn.Module] = set()

    def place(self, module: nn.Module, path: str, key: str, view: View | None = None) -> None:
        """Make the tensor `key`, or a view of it, the frozen parameter `path` of the module.

        The parameter is a new object on the lent storage, so that its flags are ours and the lender's stay as they
        are. Raises PlainError for another shape than the module's, and for packed formats.
        """
        parent, _, leaf = path.rpartition(".")
        owner = module.get_submodule(parent)
        view = view or _as_it_is
        empty = cast(nn.Parameter, getattr(owner, leaf))
        tensor = view(_plain(self._tensors[key], key))
        if tensor.shape != empty.shape:
            raise PlainError(
                f"The checkpoint's {key} gives the shape {tuple(tensor.shape)} where its neighbours ask for "
                f"{tuple(empty.shape)}; the file is damaged or of an unknown kind."
            )
        if self._bits and leaf == "weight" and suits(owner, tensor):
            hold(owner, tensor.to(self.device), self._bits, self.dtype)
            return
        if self._owned:
            tensor = tensor.to(device=self.device, dtype=self.dtype)
        else:
            empty.requires_grad = False
            self._placed.append(_Placed(owner, leaf, key, view, empty))
            self._check_device(tensor, key)
            if tensor.dtype != self.dtype and owner not in self._casting:
                _compute_in(owner, self.dtype)
                self._casting.add(owner)
        # Straight into the registry: load_state_dict is patched by hosts while they load, and copies or turns flags.
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)

    def take_back(self) -> None:
        """Point every parameter at the host's tensor of now; one that still stands there is left alone.

        Raises ModelAway where the host stores the model otherwise than when it was lent.
        """
        for owner, leaf, key, view, empty in self._placed:
            tensor = view(self._tensors[key].detach())
            held = cast(Tensor, owner._parameters[leaf])
            if held.data_ptr() == tensor.data_ptr() and held.device == tensor.device and held.dtype == tensor.dtype:
                continue
            self._check_device(tensor, key)
            known = held.dtype if held is not empty else None
            if tensor.shape != empty.shape or not tensor.is_floating_point() or (known and known != tensor.dtype):
                raise ModelAway(f"The model's {key} is stored in another form than when the training began.")
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)

    def let_go(self) -> None:
        """Hold none of a host's tensors until they are taken back; nothing for owned ones."""
        for owner, leaf, _, _, empty in self._placed:
            owner._parameters[leaf] = empty

    def _check_device(self, tensor: Tensor, key: str) -> None:
        if tensor.device.type != self.device.type:
            raise ModelAway(f"The model's {key} is on {tensor.device}, and the training runs on {self.device}.")


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _plain(tensor: Tensor, key: str) -> Tensor:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise PlainError(
            f"The checkpoint's {key} is quantised ({tensor.dtype}), which cannot be trained upon; "
            "choose the fp16 or bf16 version of the model."
        )
    return tensor.detach()


def _compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Let the module's forward see its weights in `dtype`, made for the call and dropped after it."""
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        lent = dict(module._parameters)
        try:
            for leaf, weight in lent.items():
                if weight is not None:
                    module._parameters[leaf] = nn.Parameter(weight.to(dtype), requires_grad=False)
            return plain(*args, **kwargs)
        finally:
            module._parameters.update(lent)

    module.forward = forward


def check_names(module: nn.Module, places: Mapping[str, LdmPlace], unknown: Iterable[str], what: str) -> None:
    """Raise PlainError unless the checkpoint names exactly the parameters of the module built for it."""
    wanted = {name for name, _ in module.named_parameters()}
    missing, extra = sorted(wanted - places.keys()), sorted({*unknown, *(places.keys() - wanted)})
    if missing or extra:
        lacks = f"lacks {len(missing)} weights (such as {missing[0]})" if missing else ""
        holds = f"holds {len(extra)} unknown ones (such as {extra[0]})" if extra else ""
        raise PlainError(
            f"The checkpoint's {what} {' and '.join(filter(None, (lacks, holds)))}: it is incomplete or of a kind "
            "that is not supported; choose a whole SD1, SD2 or SDXL checkpoint."
        )
