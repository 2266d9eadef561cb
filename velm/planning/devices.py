"""Speed, memory and links of GPUs by their data sheets; FLOP/s come from Lightning's table."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from velm import _compat
from velm.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        memory: GiB.
        half: FLOP/s of dense products in bfloat16, in float16 on devices without bfloat16.
        single: FLOP/s in float32.
        link: GB/s (1e9 bytes) per direction to the other GPUs of its machine.
    """

    memory: float
    half: float
    single: float
    link: float


# chip in Lightning's table, GiB, GB/s per direction (NVLink if the board has it, else PCIe)
_BOARDS: dict[str, tuple[str, float, float]] = {
    "v100": ("v100 sxm", 32, 150),
    "t4": ("t4", 15, 16),
    "a10g": ("a10g", 22, 32),
    "l4": ("l4", 22, 32),
    "l40": ("l40", 45, 32),
    "a40": ("a40", 45, 32),
    "rtx3090": ("rtx 3090", 24, 32),
    "rtx4090": ("rtx 4090", 24, 32),
    "a100-40": ("a100", 40, 300),
    "a100": ("a100", 80, 300),
    "h100-pcie": ("h100 pcie", 80, 64),
    "h100": ("h100 sxm", 80, 450),
    "h200": ("h200 sxm1", 141, 450),
}


def _device(chip: str, memory: float, link: float) -> Device:
    speeds = _compat.gpu_flops_table()[chip]
    return Device(memory, speeds.get(torch.bfloat16, speeds[torch.float16]), speeds[torch.float32], link)


DEVICES: dict[str, Device] = {name: _device(*board) for name, board in _BOARDS.items()}


def device(name: str) -> Device:
    """The GPU of that name, in any case.

    Raises:
        ConfigError: an unknown name.
    """
    if name.lower() not in DEVICES:
        raise ConfigError(f"Unknown device {name!r}. Known: {', '.join(DEVICES)}.")
    return DEVICES[name.lower()]
