"""How much memory there is and how much is taken, in bytes; and how to tell that it was not enough."""

from __future__ import annotations

import errno
import gc
import sys
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Of torch's allocator on the CPU (c10/core/CPUAllocator.cpp), of CUDA, HIP, cuBLAS and cuDNN where they ask by
# themselves, of Apple's (aten/src/ATen/mps/MPSAllocator.mm), of DirectML's plug-in, of oneDNN, and of C++ itself where
# torch passes its exception on: RuntimeErrors, all of them.
_OF_ALLOCATORS = (
    "DefaultCPUAllocator", "CUDA error: out of memory", "HIP error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "MPS backend out of memory", "not enough GPU video memory available",
    "could not create a memory", "bad_alloc", "bad allocation",
)  # fmt: skip
_LOOK_EVERY = 0.002  # seconds between two looks at the process's memory: a layer on a CPU takes longer


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
    """Whether torch, numpy, Python or the system could not get the memory asked for; of some only the text tells."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_ALLOCATORS)


def let_go(device: torch.device, error: BaseException | None = None) -> None:
    """Free what nobody uses: what an error's frames still hold, reference cycles, and what torch keeps in reserve."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "cpu":
        give_back_to_the_system()


def give_back_to_the_system() -> None:
    """What was freed in the CPU's memory; glibc keeps it else."""
    import ctypes

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # no glibc: macOS, musl; Windows, where None names no library
        return


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. To CUDA from pinned memory: from any other the process would wait for all that the
    device still has to do."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


# --- how much there is -----------------------------------------------------------------------------------------------


class Room(NamedTuple):
    """Memory of a device at one moment."""

    total: int
    free: int  # that a run could still take, torch's own reserve included


def room(device: torch.device) -> Room | None:
    """The device's memory, for a CPU the process's; None where nobody says."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return Room(total, total - torch.mps.current_allocated_memory())
    if device.type != "cpu":
        return None
    import psutil  # of accelerate's own requirements

    memory, used = psutil.virtual_memory(), psutil.Process().memory_info()
    total, free = memory.total, memory.available
    for limit, taken in (_of_group(), (_of_process(), used.vms)):
        if limit is not None:
            total, free = min(total, limit), min(free, limit - taken)
    return Room(total, max(0, free))


def _of_process() -> int | None:
    """The process's own limit of address space (`ulimit -v`), if it has one."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _of_group() -> tuple[int | None, int]:
    """Limit and use of the container's control group (cgroup v2, "memory.max"), if it has a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = (folder / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None, 0
    return (int(limit), int(used)) if limit.isdecimal() else (None, 0)


# --- how much is taken -----------------------------------------------------------------------------------------------


class Taken:
    """What a piece of work took at its highest, above what there was before it; filled when `watched` ends."""

    peak: int = 0  # bytes


@contextmanager
def watched(device: torch.device) -> Generator[Taken, None, None]:
    """Measure the most memory in use within it: torch's own count on CUDA, the process's on a CPU."""
    taken = Taken()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield taken
        taken.peak = torch.cuda.max_memory_allocated(device) - before
        return
    look = _mps_memory if device.type == "mps" else _process_memory
    before, over = look(), threading.Event()
    highest = before

    def watch() -> None:
        nonlocal highest
        while not over.wait(_LOOK_EVERY):
            highest = max(highest, look())

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()
        taken.peak = max(highest, look()) - before


def _process_memory() -> int:
    """Without the pages of mapped files (a checkpoint's), which the system takes back when it needs them."""
    import psutil

    used: Any = psutil.Process().memory_info()
    return int(used.rss - getattr(used, "shared", 0))


def _mps_memory() -> int:
    mps: Any = torch.mps
    return int(mps.driver_allocated_memory())


def in_gigabytes(count: float) -> str:
    """ "5.1 GB", "12 MB"; 1 GB is 2**30 bytes, as graphics cards and task managers count."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 / 10 else f"{count / 2**20:.0f} MB"
