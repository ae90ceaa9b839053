"""Tensors put into modules that were built on the `meta` device: no copy where device and dtype agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lora_trainer.contracts import LdmPlace, PlainError


def lend(module: nn.Module, path: str, tensor: Tensor, key: str) -> None:
    """Make `tensor` the frozen parameter `path` of the module; `key` is its name in the checkpoint, for messages.

    The parameter is a new object on the lent storage, so that its flags are ours and the lender's stay as they are.
    """
    parent, _, leaf = path.rpartition(".")
    owner = module.get_submodule(parent)
    expected = getattr(owner, leaf).shape
    if tensor.shape != expected:
        raise PlainError(
            f"The checkpoint's {key} gives the shape {tuple(tensor.shape)} where its neighbours ask for "
            f"{tuple(expected)}; the file is damaged or of an unknown kind."
        )
    # Straight into the registry: load_state_dict is patched by hosts while they load, and copies or turns flags.
    owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def converted(tensor: Tensor, key: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The tensor itself where device and dtype agree, else a copy there. Raises PlainError for packed formats."""
    if not tensor.is_floating_point():
        raise PlainError(
            f"The checkpoint's {key} is quantised ({tensor.dtype}), which cannot be trained upon; "
            "choose the fp16 or bf16 version of the model."
        )
    return tensor.detach().to(device=device, dtype=dtype)


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
