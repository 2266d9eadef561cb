"""Memory, traffic and time of a training step on W devices, as functions of `Costs`, `Setup` and `Machine`.

`Costs` are measured by `velm.planning.measure`, a `Machine` comes from data sheets. Formulas: docs/scaling.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BUCKET = 25 << 20  # bytes of gradients per all-reduce of DDP


@dataclass(frozen=True)
class Costs:
    """Bytes and FLOPs of a model.

    Attributes:
        weights: bytes of all weights.
        trainable: bytes of the trainable weights.
        in_blocks: bytes of the weights in repeated blocks, which FSDP2 shards one by one.
        largest_block: bytes of the largest block.
        average: bytes of the moving average of the weights; 0 without one.
        in_losses: bytes of the losses' own weights (temperatures), which FSDP2 does not shard.
        activations: (per sample, constant) bytes alive at the peak of a forward and backward pass.
        forward_flops, backward_flops: (per sample, constant).
        sample_bytes: an image and its tokens in device memory.
        embed_bytes: image and text embedding of one row; 0 without an alignment loss.
        rows: texts per sample.
        captions: whether there is a captioning loss, which counts tokens over all devices.
        shared: whether each device compares its own images with the texts of all (`Loss.shares`); else the embeddings
            of all are gathered, and every device compares all of them.
        loss_bytes, loss_flops: coefficients (n^2, n, 1) of the alignment losses of n rows.
        sampling_bytes, sampling_flops: (per sample, constant), of the captions that the model samples before the
            forward pass (`scst`); 0 without them.
    """

    weights: int
    trainable: int
    in_blocks: int
    largest_block: int
    average: int
    in_losses: int
    activations: tuple[float, float]
    forward_flops: tuple[float, float]
    backward_flops: tuple[float, float]
    sample_bytes: int
    embed_bytes: int
    rows: int
    captions: bool
    shared: bool
    loss_bytes: tuple[float, float, float]
    loss_flops: tuple[float, float, float]
    sampling_bytes: tuple[float, float] = (0.0, 0.0)
    sampling_flops: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Setup:
    """Devices, batch and parallelism of a run.

    Attributes:
        gpus: W, data-parallel devices.
        batch: B, samples per step and device.
        micro_batch: samples, each an image with its texts, whose activations exist at the same time; None: all.
        sharded: FSDP2 instead of DDP.
        workers: DataLoader workers per device.
        precision: of the Trainer.
    """

    gpus: int
    batch: int
    micro_batch: int | None = None
    sharded: bool = False
    workers: int = 1
    precision: str = "32-true"

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per batch; 1: the batch is not split."""
        return 1 if self.micro_batch is None else math.ceil(self.batch / self.micro_batch)


@dataclass(frozen=True)
class Machine:
    """Speed of devices, links and workers: the assumptions of a plan.

    Attributes:
        half, single: peak FLOP/s of a device in half precision and in float32.
        utilisation: fraction of the peak that the towers reach, in (0, 1].
        link, network: GB/s per direction and device, within a machine and between machines.
        in_machine: devices per machine.
        latency: microseconds per message.
        overlap: fraction of the backward pass that hides the gradients' communication, in (0, 1].
        images: images per second and worker.
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
    """One kind of collective operation of a step.

    Attributes:
        what: the tensor that is sent.
        kind: 'all_reduce', 'all_gather', 'all_to_all' or 'reduce_scatter'.
        bytes: of the whole tensor, before a reduction or after a gather; all calls together.
        calls: number of operations.
        hidden: whether it overlaps with computation.
    """

    what: str
    kind: str
    bytes: int
    calls: int
    hidden: bool = False

    def wire(self, gpus: int) -> float:
        """Bytes that a device sends in a ring of W devices: (W - 1) / W of the tensor, twice for an all-reduce."""
        return (2 if self.kind == "all_reduce" else 1) * self.bytes * (gpus - 1) / gpus


def memory(costs: Costs, setup: Setup) -> dict[str, int]:
    """Peak bytes of a step on a device, by part, and `total`.

    Activations and the similarities of the alignment losses coexist unless the batch is split into micro-batches. The
    memory of sampling is free again when the forward pass begins, and sampling does not use micro-batches.
    """
    shards = setup.gpus if setup.sharded else 1
    samples = min(setup.batch, setup.micro_batch or setup.batch)
    parts = {
        "weights": costs.weights / shards,
        "gradients": costs.trainable / shards,
        "optimizer": 2 * costs.trainable / shards,
        "average": costs.average,
        "unsharded": _unsharded(costs, setup),
        "buckets": costs.trainable if not setup.sharded and setup.gpus > 1 else 0,
        "batch": setup.batch * costs.sample_bytes,
        "embeddings": _embeddings(costs, setup),
        "activations": costs.activations[0] * samples + costs.activations[1],
        "similarities": max(_pairs(costs.loss_bytes, costs, setup), 0),
        "sampling": costs.sampling_bytes[0] * setup.batch + costs.sampling_bytes[1],
    }
    counted = {name: round(number) for name, number in parts.items()}
    total = sum(counted.values())
    if setup.micro_batches > 1:
        total -= min(counted["activations"], counted["similarities"])
    total -= min(counted["sampling"], counted["activations"])
    return {**counted, "total": total}


def _embeddings(costs: Costs, setup: Setup) -> int:
    """Bytes of a device's own and of gathered embeddings, and of their gradients."""
    own = setup.batch * costs.rows
    if setup.gpus == 1:
        return 2 * costs.embed_bytes * own
    return costs.embed_bytes * (2 * own + (1 if costs.shared else 2) * own * setup.gpus)


def _unsharded(costs: Costs, setup: Setup) -> int:
    """Bytes of weights and gradients that FSDP2 holds unsharded at the peak.

    The weights outside blocks and their gradients, two blocks and the gradient of one. With micro-batches all weights
    and gradients: gradients are reduced after the last micro-batch only.
    """
    if not setup.sharded or setup.gpus == 1:
        return 0
    if setup.micro_batches > 1:
        return costs.weights + costs.trainable
    return 2 * (costs.weights - costs.in_blocks) + 3 * costs.largest_block


def flops(costs: Costs, setup: Setup) -> dict[str, float]:
    """Floating-point operations of a step on a device; micro-batches run the forward pass twice, sampling once."""
    forward = setup.batch * costs.forward_flops[0] + setup.micro_batches * costs.forward_flops[1]
    backward = setup.batch * costs.backward_flops[0] + setup.micro_batches * costs.backward_flops[1]
    losses = max(_pairs(costs.loss_flops, costs, setup), 0.0)
    sampling = setup.batch * costs.sampling_flops[0] + costs.sampling_flops[1]
    forward *= 2 if setup.micro_batches > 1 else 1
    return {"forward": forward + sampling, "backward": backward, "losses": losses}


def _pairs(factors: tuple[float, float, float], costs: Costs, setup: Setup) -> float:
    """Cost on a device of comparing all rows of a step; `factors` are coefficients (n^2, n, 1)."""
    rows = setup.batch * costs.rows * setup.gpus
    return (factors[0] * rows + factors[1]) * rows / (setup.gpus if costs.shared else 1) + factors[2]


def collectives(costs: Costs, setup: Setup) -> list[Collective]:
    """The collective operations of a step; none on one device."""
    if setup.gpus == 1:
        return []
    rows = setup.batch * costs.rows * setup.gpus
    counts = 2 if costs.embed_bytes and costs.shared else 1  # of the step, and of a loss that shares its work
    sent = [Collective("samples of each device", "all_gather", 8 * setup.gpus * counts, counts)]
    if costs.embed_bytes:
        sent += _of_pairs(costs, rows)
    if costs.captions:
        sent.append(Collective("token count", "all_reduce", 4, 1))
    if not setup.sharded:
        calls = max(1, math.ceil(costs.trainable / BUCKET))
        return [*sent, Collective("gradients", "all_reduce", costs.trainable, calls, hidden=True)]
    # as counted on gloo by benchmarks/scaling.py: blocks are gathered for each pass, other weights once, and gradients
    # are reduced once, after the last micro-batch
    rest = costs.weights - costs.in_blocks - costs.in_losses
    gathered = 2 * setup.micro_batches * costs.in_blocks + rest
    return [
        *sent,
        Collective("temperatures", "all_reduce", costs.in_losses, 1),
        Collective("weights", "all_gather", gathered, 2 * setup.micro_batches, hidden=True),
        Collective("gradients", "reduce_scatter", costs.trainable - costs.in_losses, 1, hidden=True),
    ]


def _of_pairs(costs: Costs, rows: int) -> list[Collective]:
    """Collective operations of the alignment losses; with `shared`, those of `contrastive`."""
    ids = Collective("image ids", "all_gather", 8 * rows, 1)
    if not costs.shared:
        embeds = Collective("embeddings", "all_gather", costs.embed_bytes * rows, 2)
        return [ids, embeds, Collective("their gradients", "all_to_all", costs.embed_bytes * rows, 2)]
    texts = costs.embed_bytes // 2 * rows
    return [
        ids,
        Collective("text embeddings", "all_gather", texts, 1),
        Collective("sums per text", "all_reduce", 3 * 4 * rows + 8, 4),
        Collective("gradients of text embeddings", "all_to_all", texts, 1),
    ]


def seconds(costs: Costs, setup: Setup, machine: Machine) -> dict[str, float]:
    """Seconds of a step by part, and `total`: the larger of data loading and of compute plus exposed communication."""
    work = flops(costs, setup)
    speed = machine.utilisation * (machine.single if setup.precision.startswith("32") else machine.half)
    compute = (work["forward"] + work["backward"]) / speed
    losses = work["losses"] / (machine.utilisation * machine.single)  # float32 in every precision
    rate = machine.link if setup.gpus <= machine.in_machine else min(machine.link, machine.network)
    hops = 1e-6 * machine.latency * math.ceil(math.log2(max(setup.gpus, 2)))
    times = {True: 0.0, False: 0.0}
    for each in collectives(costs, setup):
        times[each.hidden] += each.wire(setup.gpus) / (1e9 * rate) + each.calls * hops
    hidden = machine.overlap * compute * work["backward"] / max(work["forward"] + work["backward"], 1)
    data = setup.batch / (max(setup.workers, 1) * machine.images)
    exposed = max(times[True] - hidden, 0.0)
    parts = {"towers": compute, "losses": losses, "embeddings": times[False], "gradients": exposed}
    computed = sum(parts.values())
    return {**parts, "waiting for data": max(data - computed, 0.0), "total": max(computed, data)}
