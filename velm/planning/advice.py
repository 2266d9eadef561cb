"""The cheapest change of a config that makes a step fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from velm.planning.step import Costs, Setup, memory

CHECKPOINT = "--model.checkpoint_blocks=true"


@dataclass(frozen=True)
class Advice:
    """A setup that fits.

    Attributes:
        flags: options to add to the command line; empty if the config fits as it is.
        setup: devices, batch and parallelism with these options.
        costs: of the model with these options.
    """

    flags: tuple[str, ...]
    setup: Setup
    costs: Costs


def advise(costs: Costs, setup: Setup, limit: float, checkpointed: Callable[[], Costs | None]) -> Advice | None:
    """The first setup whose memory is at most `limit`; None if even one sample per device needs more.

    In order: the setup as it is; micro-batches (one more forward pass); FSDP2 (more communication); both; the same with
    checkpointed blocks; half the batch, a quarter, ...

    Args:
        limit: bytes.
        checkpointed: returns the costs with `checkpoint_blocks`; None if the model has no blocks, or they are
            checkpointed already. Called at most once.
    """
    checkpointed = cache(checkpointed)
    batch = setup.batch
    while batch >= 1:
        micro_batch = None if setup.micro_batch is None else min(setup.micro_batch, batch)
        smaller = replace(setup, batch=batch, micro_batch=micro_batch)
        for variant, flags in ((lambda: costs, ()), (checkpointed, (CHECKPOINT,))):
            layout = _first_layout(variant(), smaller, limit)
            if layout is not None:
                return Advice((*_flags(setup, layout[0], costs.rows), *flags), *layout)
        batch //= 2
    return None


def _first_layout(costs: Costs | None, setup: Setup, limit: float) -> tuple[Setup, Costs] | None:
    """The first of `_layouts` that fits."""
    if costs is None:
        return None
    fitting = (layout for layout in _layouts(setup, costs) if memory(costs, layout)["total"] <= limit)
    return next(((layout, costs) for layout in fitting), None)


def _layouts(setup: Setup, costs: Costs) -> Iterator[Setup]:
    """The setup and halved micro-batches; then the same with FSDP2, which does not support a moving average."""
    for sharded in sorted({setup.sharded, setup.sharded or (not costs.average and setup.gpus > 1)}):
        yield replace(setup, sharded=sharded)
        size = 1 << ((min(setup.batch, setup.micro_batch or setup.batch) - 1).bit_length())
        while (size := size // 2) >= 1:
            yield replace(setup, sharded=sharded, micro_batch=size)


def _flags(before: Setup, after: Setup, rows: int) -> list[str]:
    """The options that change `before` into `after`; `micro_batch_size` counts the `rows` texts of each sample."""
    flags = []
    if after.batch != before.batch:
        flags.append(f"--data.batch_size={after.batch}")
    if after.micro_batch is not None and after.micro_batch != before.micro_batch:
        flags.append(f"--model.micro_batch_size={after.micro_batch * rows}")
    if after.sharded and not before.sharded:
        flags.append("--trainer.strategy=fsdp2")
    return flags
