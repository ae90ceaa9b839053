"""A process of our own keeps the memory that a step has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of writing 16 MiB ten times: each takes its 4096 pages anew, unless they were kept.
_FAULTS = """
import ctypes, resource, sys
from lora_trainer.hosts.standalone import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def once():
    place = libc.malloc(ctypes.c_size_t(16 << 20))
    ctypes.memset(place, 1, 16 << 20)
    libc.free(ctypes.c_void_p(place))
if sys.argv[1] != "kept":
    libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: glibc's own, which else follows what was freed
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", _FAULTS, how], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks for glibc")
def test_pages_of_freed_memory_are_kept() -> None:
    given_back, kept = _faults("given back"), _faults("kept")
    assert given_back > 200  # huge pages make it fewer than 10 x 4096
    assert kept < given_back / 10
