"""What a step frees, the next one takes: seen by the pages that the kernel has to make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from velm import allocation

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")

START = "from velm.allocation import keep_freed_memory; assert keep_freed_memory('cpu') is {expected}"
FAULTS = """
import resource, torch
{start}
torch.ones(2**24)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(2**22)  # 16 MiB, or 4,096 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(environment: dict[str, str], start: str, program: str = FAULTS) -> int:
    """Pages made, after `start`, for tensors that find a larger one's memory."""
    line = [sys.executable, "-c", program.format(start=start)]
    output = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    return int(output.splitlines()[-1])


@pytest.fixture
def untuned(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment without what sets the allocator."""
    for name in (*allocation.TUNED, "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    return dict(os.environ)


@linux
def test_a_tensor_takes_the_memory_of_those_before(untuned: dict[str, str]) -> None:
    assert faults(untuned, START.format(expected=True)) < 1_000
    tuned = {**untuned, "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    assert faults(tuned, START.format(expected=False)) > 10_000


@linux
def test_so_does_one_of_another_thread(untuned: dict[str, str]) -> None:
    program = FAULTS.replace("torch.ones", "in_a_thread").replace("2**24", "2**25").replace("2**22", "2**24")
    in_a_thread = """
import threading, torch
{start}
def in_a_thread(count):
    thread = threading.Thread(target=torch.ones, args=[count])
    thread.start()
    thread.join()
"""
    program = program.replace("{start}", in_a_thread)  # tensors of 128 and 64 MiB, too large for an arena of a thread
    assert faults(untuned, START.format(expected=True), program) < 1_000
    assert faults({**untuned, "MALLOC_ARENA_MAX": "8"}, START.format(expected=False), program) > 10_000


def test_another_device_has_an_allocator_of_its_own(untuned: dict[str, str]) -> None:
    assert not allocation.keep_freed_memory("cuda:0")


@linux
@pytest.mark.parametrize(("command", "options"), [("caption", []), ("embed", ["--output", "embeddings"])])
def test_commands_keep_it(
    untuned: dict[str, str],
    write_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("a.png")
    arguments = [command, str(write_checkpoint()), "a.png", *options]
    assert faults(untuned, f"import velm.cli; assert velm.cli.main({arguments}) == 0") < 1_000


def test_another_c_library_is_left_alone(untuned: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: None) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(allocation.ctypes, "CDLL", none)
    assert not allocation.keep_freed_memory("cpu")
