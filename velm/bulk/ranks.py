"""The share of a process in a bulk run: by --shard, by the launcher that started it, or by --devices."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from velm.errors import ConfigError, RunFailedError

__all__ = ["Share", "launch", "read_shard", "share_of_process"]


@dataclass(frozen=True)
class Share:
    """A process does the parts number, number + count, number + 2 count, ...

    Attributes:
        number: 0 <= number < count.
        count: of all processes of all jobs.
        local_rank: of the process on its machine, which picks its device.
    """

    number: int = 0
    count: int = 1
    local_rank: int = 0

    def within(self, rank: int, world_size: int, local_rank: int) -> Share:
        """The share of a rank of a job that has this one."""
        return Share(self.number * world_size + rank, self.count * world_size, local_rank)

    def parts(self, total: int) -> range:
        """The numbers of its parts."""
        return range(self.number, total, self.count)

    def device(self, name: str) -> str:
        """'cuda' as that of the local rank; any other device as it is."""
        return f"cuda:{self.local_rank}" if name == "cuda" else name


def read_shard(text: str | None) -> Share:
    """The share of '0/4', the first of four; that of None is the whole.

    Raises:
        ConfigError: it is not I/N, or there is no such shard.
    """
    if text is None:
        return Share()
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None:
        raise ConfigError(f"--shard {text} is not I/N: shard I of N, counted from 0, such as 0/4.")
    number, count = int(match[1]), int(match[2])
    if number >= count:
        shards = f"0/{count} to {count - 1}/{count}" if count else "none"
        raise ConfigError(f"--shard {text} does not exist: the shards of {count} are {shards}.")
    return Share(number, count)


def share_of_process(shard: Share) -> Share:
    """The share of this process: of the shard, what torchrun, SLURM, LSF or MPI give to its rank.

    Looked for in the order of Lightning; each is one of its cluster environments.

    Raises:
        ConfigError: the variables of SLURM contradict each other.
    """
    from lightning.fabric.plugins import environments

    for kind in (
        environments.TorchElasticEnvironment,
        environments.SLURMEnvironment,
        environments.LSFEnvironment,
        environments.MPIEnvironment,
    ):
        if kind.detect():
            try:
                found = kind()
            except RuntimeError as error:
                raise ConfigError(f"{error} Or name the share of each process: --shard I/N.") from error
            return shard.within(found.global_rank(), found.world_size(), found.local_rank())
    return shard


def launch(function: Callable[[Any], None], devices: int, device: str) -> None:
    """Run `function(fabric)` in one process per device, started by Lightning.

    Args:
        function: picklable; its arguments are bound by `functools.partial`, since Lightning changes those it is given.
        devices: number of processes, at least 2.
        device: 'cpu' or 'cuda'.

    Raises:
        ConfigError: there are not as many devices.
        RunFailedError: a process was killed or failed; the others are stopped then.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--devices {devices} needs --device cpu or cuda, which it counts; got --device {device}.")
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Lightning, about training
            fabric = Fabric(accelerator=device, devices=devices, strategy="ddp_spawn", plugins=[LightningEnvironment()])
    except (MisconfigurationException, RuntimeError) as error:
        raise ConfigError(f"--devices {devices} --device {device}: {error}") from error
    try:
        fabric.launch(function)
    except ProcessExitedException as error:
        how = f"was killed ({error.signal_name})" if error.signal_name else f"ended with exit code {error.exit_code}"
        raise RunFailedError(
            f"Process {error.error_index} of {devices} {how}, and the others were stopped. The parts that are finished "
            f"stay; run the same command again."
        ) from error
    except ProcessRaisedException as error:
        raise RunFailedError(f"Process {error.error_index} of {devices} failed:\n{error}") from error
