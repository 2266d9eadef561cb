"""What to set so that a step fits: the cheapest first, and a smaller batch last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from velm.planning.step import Costs, Setup, memory

__all__ = ["Advice", "advise"]


@dataclass(frozen=True)
class Advice:
    """A layout that fits.

    Attributes:
        flags: what to add to the command line.
        setup: the layout.
        costs: of the model as it is then.
    """

    flags: tuple[str, ...]
    setup: Setup
    costs: Costs


def advise(costs: Costs, setup: Setup, limit: float, checkpointed: Callable[[], Costs | None]) -> Advice | None:
    """The first layout whose memory is at most `limit`; None where even one sample a device is too much.

    In order: the layout as it is; pieces (one more forward pass); FSDP2 (more traffic); both; the same with
    checkpointed blocks; half the batch, a quarter, ...

    Args:
        costs: of the model as the config has it.
        setup: as the config has it.
        limit: bytes.
        checkpointed: the costs with `checkpoint_blocks`, or None where the model has no blocks or it is set already.
    """
    batch, again = setup.batch, None
    while batch >= 1:
        smaller = replace(setup, batch=batch, piece=None if setup.piece is None else min(setup.piece, batch))
        for costs_then, flag in ((costs, ()), (None, ("--model.checkpoint_blocks=true",))):
            if costs_then is None:
                again = again or checkpointed()
                costs_then = again
            if costs_then is None:
                continue
            for chosen in _layouts(smaller, sharding=not costs.averaged):
                if memory(costs_then, chosen)["total"] <= limit:
                    return Advice((*_flags(setup, chosen), *flag), chosen, costs_then)
        batch //= 2
    return None


def _layouts(setup: Setup, sharding: bool) -> Iterator[Setup]:
    """The layout, and those with smaller pieces and with shards."""
    kinds = {setup.sharded, setup.sharded or (sharding and setup.gpus > 1)}
    for sharded in sorted(kinds):
        yield replace(setup, sharded=sharded)
        piece = 1 << ((min(setup.batch, setup.piece or setup.batch) - 1).bit_length())
        while (piece := piece // 2) >= 1:
            yield replace(setup, sharded=sharded, piece=piece)


def _flags(before: Setup, after: Setup) -> list[str]:
    flags = []
    if after.batch != before.batch:
        flags.append(f"--data.batch_size={after.batch}")
    if after.piece != before.piece:
        flags.append(f"--model.micro_batch_size={after.piece}")
    if after.sharded and not before.sharded:
        flags.append("--trainer.strategy=fsdp2")
    return flags
