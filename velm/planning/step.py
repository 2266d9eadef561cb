"""Memory, traffic and time of a step on W devices, from what a model takes; docs/scaling.md has the formulas.

Sums only: `Costs` come from `velm.planning.measure`, the numbers of a `Machine` from a data sheet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Collective", "Costs", "Machine", "Setup", "collectives", "flops", "memory", "seconds"]

BUCKET = 25 << 20  # bytes of gradients that DDP sends at once


@dataclass(frozen=True)
class Costs:
    """What a model takes, by itself and for every sample.

    Attributes:
        weights: bytes of all weights.
        learnt: bytes of those that are trained.
        in_blocks: bytes of the weights in repeated blocks, which FSDP2 shards one by one.
        largest_block: bytes of the largest of them.
        averaged: bytes of the moving average of the weights.
        of_losses: bytes of the losses' own weights (temperatures), which FSDP2 leaves whole.
        activations: (a sample, whatever the number): bytes that live at the peak of a forward and backward pass.
        forward_flops, backward_flops: (a sample, whatever the number).
        sample_bytes: an image and its tokens as they lie on the device.
        embed_bytes: the embeddings of one row, both towers together; 0 where nothing is compared.
        rows: sentences of a sample.
        writes: whether there is a captioning loss, whose tokens are counted over all devices.
        shared: whether each device compares its own images with everybody's sentences, as our losses do; else
            embeddings of all are gathered, and every device compares all of them.
        loss_bytes, loss_flops: (n^2, n, 1): of the losses that compare n rows.
    """

    weights: int
    learnt: int
    in_blocks: int
    largest_block: int
    averaged: int
    of_losses: int
    activations: tuple[float, float]
    forward_flops: tuple[float, float]
    backward_flops: tuple[float, float]
    sample_bytes: int
    embed_bytes: int
    rows: int
    writes: bool
    shared: bool
    loss_bytes: tuple[float, float, float]
    loss_flops: tuple[float, float, float]


@dataclass(frozen=True)
class Setup:
    """How a run is laid out.

    Attributes:
        gpus: W, devices that share a step.
        batch: B, samples a step and device.
        piece: samples whose activations exist at the same time; None: all.
        sharded: FSDP2 in place of DDP.
        workers: processes of a device that read images.
        precision: of the Trainer.
    """

    gpus: int
    batch: int
    piece: int | None = None
    sharded: bool = False
    workers: int = 1
    precision: str = "32-true"

    @property
    def pieces(self) -> int:
        """How many pieces a batch is cut into; 1: it is not."""
        return 1 if self.piece is None else math.ceil(self.batch / self.piece)


@dataclass(frozen=True)
class Machine:
    """What devices, links and workers do; every number is an assumption that the plan names.

    Attributes:
        half, single: FLOP/s of a device at its best, in half precision and in float32.
        utilisation: share of that which the towers reach.
        link, network: GB/s each way and device, inside a machine and between machines.
        in_machine: devices of a machine.
        latency: microseconds of one message.
        overlap: share of the backward pass behind which gradients travel.
        images: that a worker reads a second.
    """

    half: float
    single: float
    utilisation: float = 0.4
    link: float = 450.0
    network: float = 50.0
    in_machine: int = 8
    latency: float = 20.0
    overlap: float = 0.8
    images: float = 400.0


@dataclass(frozen=True)
class Collective:
    """One kind of message of a step.

    Attributes:
        what: is sent.
        kind: 'all_reduce', 'all_gather', 'all_to_all' or 'reduce_scatter'.
        bytes: of the whole tensor, as every device has it before a reduction or after a gather; all calls together.
        calls: messages.
        hidden: travels while something is computed.
    """

    what: str
    kind: str
    bytes: int
    calls: int
    hidden: bool = False

    def wire(self, gpus: int) -> float:
        """Bytes that a device sends in a ring of so many: (W - 1) / W of the whole, twice for an all-reduce."""
        return (2 if self.kind == "all_reduce" else 1) * self.bytes * (gpus - 1) / gpus


def memory(costs: Costs, setup: Setup) -> dict[str, int]:
    """Bytes of a device at the peak of a step, by part, and `total`.

    Activations and the losses' matrices exist together where the batch is whole; in pieces, one after the other.
    """
    shards = setup.gpus if setup.sharded else 1
    samples = min(setup.batch, setup.piece or setup.batch)
    parts = {
        "weights": costs.weights / shards,
        "gradients": costs.learnt / shards,
        "optimizer": 2 * costs.learnt / shards,
        "average": costs.averaged,
        "unsharded": _unsharded(costs, setup),
        "buckets": costs.learnt if not setup.sharded and setup.gpus > 1 else 0,
        "batch": setup.batch * costs.sample_bytes,
        "embeddings": _embeddings(costs, setup),
        "activations": costs.activations[0] * samples + costs.activations[1],
        "similarities": max(_pairs(costs.loss_bytes, costs, setup), 0),
    }
    counted = {name: round(number) for name, number in parts.items()}
    together = sum(counted.values())
    if setup.pieces > 1:
        together -= min(counted["activations"], counted["similarities"])
    return {**counted, "total": together}


def _embeddings(costs: Costs, setup: Setup) -> int:
    """Bytes of one's own embeddings, of those of the others that are gathered, and of the gradients of both."""
    own = setup.batch * costs.rows
    if setup.gpus == 1:
        return 2 * costs.embed_bytes * own
    return costs.embed_bytes * (2 * own + (1 if costs.shared else 2) * own * setup.gpus)


def _unsharded(costs: Costs, setup: Setup) -> int:
    """Bytes of weights and gradients that FSDP2 holds whole at the peak.

    What is in no block and its gradient, two blocks and the gradient of one. In pieces all of them: gradients are
    reduced after the last piece only, so until then they are whole.
    """
    if not setup.sharded or setup.gpus == 1:
        return 0
    if setup.pieces > 1:
        return costs.weights + costs.learnt
    return 2 * (costs.weights - costs.in_blocks) + 3 * costs.largest_block


def flops(costs: Costs, setup: Setup) -> dict[str, float]:
    """Floating-point operations of a step on a device: `towers`, again for pieces, and `losses` of all rows."""
    forward = setup.batch * costs.forward_flops[0] + setup.pieces * costs.forward_flops[1]
    backward = setup.batch * costs.backward_flops[0] + setup.pieces * costs.backward_flops[1]
    losses = max(_pairs(costs.loss_flops, costs, setup), 0.0)
    return {"forward": forward * (2 if setup.pieces > 1 else 1), "backward": backward, "losses": losses}


def _pairs(factors: tuple[float, float, float], costs: Costs, setup: Setup) -> float:
    """What a device takes to compare the rows of a step, of a parabola in them all."""
    rows = setup.batch * costs.rows * setup.gpus
    return (factors[0] * rows + factors[1]) * rows / (setup.gpus if costs.shared else 1) + factors[2]


def collectives(costs: Costs, setup: Setup) -> list[Collective]:
    """The messages of a step; none on one device."""
    if setup.gpus == 1:
        return []
    rows, sent = setup.batch * costs.rows * setup.gpus, []
    if costs.embed_bytes:
        sent += _of_pairs(costs, rows)
    if costs.writes:
        sent.append(Collective("token count", "all_reduce", 4, 1))
    if not setup.sharded:
        calls = max(1, math.ceil(costs.learnt / BUCKET))
        return [*sent, Collective("gradients", "all_reduce", costs.learnt, calls, hidden=True)]
    # counted on gloo (benchmarks/scaling.py): blocks are gathered for each pass, the rest once, and gradients are
    # reduced once, after the last piece
    rest = costs.weights - costs.in_blocks - costs.of_losses
    gathered = 2 * setup.pieces * costs.in_blocks + rest
    return [
        *sent,
        Collective("temperatures", "all_reduce", costs.of_losses, 1),
        Collective("weights", "all_gather", gathered, 2 * setup.pieces, hidden=True),
        Collective("gradients", "reduce_scatter", costs.learnt - costs.of_losses, 1, hidden=True),
    ]


def _of_pairs(costs: Costs, rows: int) -> list[Collective]:
    """Those of the losses that compare the rows of a step; where they share the work, as `contrastive` sends them."""
    ids = Collective("image ids", "all_gather", 8 * rows, 1)
    if not costs.shared:
        embeds = Collective("embeddings", "all_gather", costs.embed_bytes * rows, 2)
        return [ids, embeds, Collective("their gradients", "reduce_scatter", costs.embed_bytes * rows, 2)]
    sentences = costs.embed_bytes // 2 * rows
    return [
        ids,
        Collective("sentences", "all_gather", sentences, 1),
        Collective("sums of a sentence", "all_reduce", 3 * 4 * rows + 8, 4),
        Collective("gradients of sentences", "all_to_all", sentences, 1),
    ]


def seconds(costs: Costs, setup: Setup, machine: Machine) -> dict[str, float]:
    """Seconds of a step by part, and `total`: the larger of reading and computing, and what travels in plain sight."""
    work = flops(costs, setup)
    speed = machine.utilisation * (machine.single if setup.precision.startswith("32") else machine.half)
    compute = (work["forward"] + work["backward"]) / speed
    losses = work["losses"] / (machine.utilisation * machine.single)  # float32 in every precision
    rate = machine.link if setup.gpus <= machine.in_machine else min(machine.link, machine.network)
    hops = 1e-6 * machine.latency * math.ceil(math.log2(max(setup.gpus, 2)))
    times = {True: 0.0, False: 0.0}
    for each in collectives(costs, setup):
        times[each.hidden] += each.wire(setup.gpus) / (1e9 * rate) + each.calls * hops
    behind = machine.overlap * compute * work["backward"] / max(work["forward"] + work["backward"], 1)
    data = setup.batch / (max(setup.workers, 1) * machine.images)
    exposed = max(times[True] - behind, 0.0)
    parts = {"towers": compute, "losses": losses, "embeddings": times[False], "gradients": exposed}
    computed = sum(parts.values())
    return {**parts, "waiting for data": max(data - computed, 0.0), "total": max(computed, data)}
