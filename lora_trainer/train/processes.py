"""One process, or several that average their gradients (started by `accelerate launch`).

Gradients are averaged by hand over one flat tensor instead of wrapping the model in DistributedDataParallel: the
wrapper would sit between the family and its UNet, and its buckets are of no use for a few megabytes of LoRA.
"""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (torch and accelerate are typed in part)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor


class Processes(Protocol):
    rank: int
    count: int
    device: torch.device

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all get the same answer."""
        ...


class OneProcess:
    """The usual case, and the only one inside a host."""

    rank = 0
    count = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def average(self, tensors: Sequence[Tensor]) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag


class AcceleratedProcesses:
    """The processes that `accelerate launch` started."""

    def __init__(self) -> None:
        import accelerate

        # Without being told so, accelerate takes several processes on a machine without a GPU for one each.
        state: Any = accelerate.PartialState(cpu=not torch.cuda.is_available())
        self.rank: int = state.process_index
        self.count: int = state.num_processes
        self.device: torch.device = state.device

    def average(self, tensors: Sequence[Tensor]) -> None:
        flat = self._reduced(torch.cat([t.reshape(-1) for t in tensors]), "mean")
        parts = torch.split(flat, [t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        return self._reduced(torch.tensor(float(flag), device=self.device), "sum").item() > 0

    def _reduced(self, tensor: Tensor, how: Literal["mean", "sum"]) -> Tensor:
        import accelerate.utils

        return cast(Any, accelerate.utils).reduce(tensor, reduction=how)
