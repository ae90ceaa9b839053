"""How much memory a run takes, in bytes."""

from __future__ import annotations

import sys

import torch

# Of torch's allocator on the CPU (c10/core/CPUAllocator.cpp), of CUDA and of cuBLAS where they ask by themselves, and
# of Apple's (aten/src/ATen/mps/MPSAllocator.mm): RuntimeErrors, all of them.
_OF_ALLOCATORS = (
    "DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory",
)  # fmt: skip


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far: torch's own on a GPU, the whole process on the CPU (0 where the system won't say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, numpy or Python could not get the memory asked for; of some allocators only the text tells."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_ALLOCATORS)
