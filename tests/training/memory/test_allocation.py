"""What a step frees, the next one takes: seen by the pages that the kernel has to make."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from velm.training.memory import allocation

FAULTS = """
import resource, torch
from velm.training.memory.allocation import keep_freed_memory
assert keep_freed_memory() is {expected}
torch.ones(2**24)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(2**22)  # 16 MiB, or 4,096 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(environment: dict[str, str], expected: bool) -> int:
    """Pages made for tensors that find a larger one's memory."""
    line = [sys.executable, "-c", FAULTS.format(expected=expected)]
    return int(subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_a_tensor_takes_the_memory_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocation.TUNED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert faults(dict(os.environ), True) < 1_000
    assert (
        faults({**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}, False) > 10_000
    )


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: None) -> None:
        raise OSError("no such library")

    for name in allocation.TUNED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocation.ctypes, "CDLL", none)
    assert not allocation.keep_freed_memory()
