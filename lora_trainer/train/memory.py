"""How much memory a run takes, in bytes."""

from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far: torch's own on a GPU, the whole process on the CPU (0 where the system won't say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not get the memory it asked for; on the CPU only the text tells."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
