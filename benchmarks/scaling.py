"""A step on many devices: bytes and times measured on this machine, and the predicted table.

    python benchmarks/scaling.py --processes 1 2 4 8
    python benchmarks/scaling.py --table configs/clip.yaml --device h100

The first command trains a small model with gloo on several processes of this machine, with DDP and with FSDP2, with
and without micro-batches, and counts the bytes of the tensors passed to every collective of a step. They are compared,
byte for byte, with the predictions of `velm.planning`. Seconds are those of a step and of a gather alone. The
processes share the cores of the machine, so the times do not scale as on separate devices.

The second command prints the predictions of `velm plan` for 1 to 1,024 devices. Nothing in it is measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
import warnings
from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BATCH, STEPS = 16, 4
MODEL: dict[str, Any] = {
    "image_encoder": {"name": "vit", "dim": 128, "depth": 4, "heads": 4, "patch_size": 16},
    "text_encoder": {"name": "transformer", "dim": 128, "depth": 4, "heads": 4, "max_length": 32},
    "decoder": {"name": "transformer", "dim": 128, "depth": 2, "heads": 4, "max_length": 32},
    "losses": {"contrastive": {}, "captioning": {}},
}
LAYOUTS = {
    "ddp": (False, None),
    "ddp, micro-batches": (False, 8),
    "fsdp2": (True, None),
    "fsdp2, micro-batches": (True, 8),
}


class Counted(TorchDispatchMode):
    """Bytes passed to collectives, by kind: the whole tensor, as in `velm.planning.step.Collective`."""

    KINDS: ClassVar[dict[str, str]] = {
        "allreduce_": "all_reduce",
        "allgather_": "all_gather",
        "_allgather_base_": "all_gather",
        "_reduce_scatter_base_": "reduce_scatter",
        "reduce_scatter_": "reduce_scatter",
        "scatter_": "reduce_scatter",  # backward pass of a gather; gloo implements it by scatters
        "alltoall_base_": "all_to_all",
    }

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func._schema.name.partition("::")
        if space == "c10d" and name in self.KINDS:
            given = [sum(t.nbytes for t in tree_leaves(arg) if isinstance(t, Tensor)) for arg in args[:2]]
            # the larger of input and output; with scatters, each process receives one share from each of the others
            self.bytes[self.KINDS[name]] += given[0] if name == "scatter_" else max(given)
        elif space == "c10d" and name not in ("barrier", "broadcast_", "send", "recv_"):
            self.bytes[name] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--table", metavar="X.yaml", help="print the predicted table of a config instead of measuring")
    parser.add_argument("--device", default="h100", help="of the table")
    parser.add_argument("--network", type=float, default=50.0, metavar="GB/S", help="between machines, of the table")
    parser.add_argument("--vocab_size", type=int, metavar="V")
    args, rest = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    if args.table:
        print_table(args, ["--config", args.table, *rest])
        return
    print(f"{'layout':<22}{'processes':>10}{'seconds a step':>16}{'a gather, ms':>14}  bytes: counted (predicted)")
    for layout in args.layouts:
        for processes in args.processes:
            got = measured(processes, layout)
            sizes = [
                f"{kind} {got['counted'].get(kind, 0):,} ({number:,})" for kind, number in got["predicted"].items()
            ]
            gather = f"{1000 * got['gather']:.2f}"
            print(f"{layout:<22}{processes:>10}{got['step']:>16.2f}{gather:>14}  {', '.join(sizes)}", flush=True)


def measured(processes: int, layout: str, steps: int = STEPS) -> dict[str, Any]:
    """Bytes of a step by kind of collective, counted and predicted; seconds of a step and of a gather (medians)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if processes == 1:
        return _steps(layout, 1, steps)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    started = [
        context.Process(target=_process, args=(rank, processes, layout, steps, port, queue))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    result: dict[str, Any] = json.loads(queue.get())
    for process in started:
        process.join()
    return result


def _process(rank: int, world: int, layout: str, steps: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        result = _steps(layout, world, steps)
        if rank == 0:
            queue.put(json.dumps(result))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _steps(layout: str, world: int, steps: int) -> dict[str, Any]:
    """A few steps of this process; the last one is counted, the median of the others is timed."""
    from velm.data.text.bpe import ByteTokenizer
    from velm.planning.measure import probe
    from velm.planning.step import Setup, collectives

    sharded, micro_batch = LAYOUTS[layout]
    task, trained = make_task(sharded, micro_batch, world)
    batch = probe(BATCH, tokenizer=ByteTokenizer(), length=32, image_size=64)
    optimizer = torch.optim.AdamW(task.parameters())
    times, counted = [], Counted()
    for number in range(steps + 1):
        begun = time.perf_counter()
        with counted if number == steps else torch.enable_grad():
            trained(batch).backward()
            task.on_after_backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begun)
    setup = Setup(gpus=world, batch=BATCH, micro_batch=micro_batch, sharded=sharded)
    predicted: dict[str, int] = defaultdict(int)
    for each in collectives(costs(), setup):
        predicted[each.kind] += each.bytes
    gather = _gather_seconds(task.model_config["embed_dim"]) if world > 1 else 0.0
    return {
        "step": statistics.median(times[1:-1] or times),
        "gather": gather,
        "counted": dict(counted.bytes),
        "predicted": dict(predicted),
    }


def _gather_seconds(width: int) -> float:
    rows, times = torch.randn(BATCH, width), []
    for _ in range(20):
        begun = time.perf_counter()
        dist.all_gather([torch.empty_like(rows) for _ in range(dist.get_world_size())], rows)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


class _Trainer:
    """The attributes of a Trainer that a task uses in a step."""

    def __init__(self, world: int) -> None:
        self.world_size = world


class _Wrapped(torch.nn.Module):
    """`forward` is the training step, as in Lightning's strategies."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Any) -> Tensor:
        total: Tensor = self.task.compute_losses(batch)[0]
        return total


def options(micro_batch: int | None) -> dict[str, Any]:
    return {**MODEL, "micro_batch_size": micro_batch, "vocab_size": 260, "pad_id": 0}


def make_task(sharded: bool, micro_batch: int | None, world: int) -> tuple[Any, Any]:
    """A task, and the function to call with a batch."""
    from lightning.fabric.utilities.distributed import _all_gather_ddp_if_available
    from torch.distributed.device_mesh import init_device_mesh

    from velm.training.distributed import fsdp as sharding
    from velm.training.task import VisionLanguageTask

    torch.manual_seed(0)
    task = VisionLanguageTask(**options(micro_batch)).train()
    task.__dict__["_trainer"], task._jit_is_scripting = _Trainer(world), False
    task.all_gather = (  # type: ignore[method-assign]  # Lightning's strategy without a Trainer
        lambda tensor, sync_grads=False: _all_gather_ddp_if_available(tensor, sync_grads=sync_grads)
    )
    wrapped: Any = _Wrapped(task)
    if world == 1:
        return task, wrapped
    if sharded:
        sharding.shard(task.model, init_device_mesh("cpu", (world,)))
        task.sharded = True
        return task, wrapped
    return task, torch.nn.parallel.DistributedDataParallel(wrapped)


def costs() -> Any:
    """The costs of the model, as measured by `velm.planning`."""
    from velm.data.text.bpe import ByteTokenizer
    from velm.planning.measure import measure, probe
    from velm.training.task import VisionLanguageTask

    return measure(
        lambda: VisionLanguageTask(**options(None)),
        lambda samples: probe(samples, tokenizer=ByteTokenizer(), length=32, image_size=64),
        "32-true",
    )


def print_table(args: argparse.Namespace, fit: list[str]) -> None:
    """Print a Markdown table with a row for each number of devices."""
    from dataclasses import replace

    from velm.planning.devices import device
    from velm.planning.plan import RESERVE, costs_of, setup_of, vocabulary_of
    from velm.planning.step import Machine, memory, seconds
    from velm.training.run import parse_fit

    config, board = parse_fit(fit), device(args.device)
    model = costs_of(config, args.vocab_size or vocabulary_of(config["data"]))
    machine = Machine(half=board.half, single=board.single, link=board.link, network=args.network)
    print("| GPUs | batch | GiB, ddp | of it similarities | GiB, fsdp2 | towers | loss | gather | gradients | data "
          "| ms a step | samples/s | of linear |")  # fmt: skip
    print("| --- " * 13 + "|")
    alone = 0.0
    for gpus in GPUS:
        setup = setup_of(config, gpus)
        taken, time_ = memory(model, setup), seconds(model, setup, machine)
        shards = memory(model, replace(setup, sharded=True))["total"]
        rate = setup.batch * gpus / time_["total"]
        alone = alone or rate
        limit = (1 - RESERVE) * board.memory * 2**30
        bold = "**" if taken["total"] > limit else ""
        cells = [f"{gpus:,}", f"{setup.batch * gpus:,}", f"{bold}{taken['total'] / 2**30:,.1f}{bold}"]
        cells += [f"{taken['similarities'] / 2**30:,.1f}", f"{shards / 2**30:,.1f}"]
        parts = ("towers", "losses", "embeddings", "gradients", "waiting for data", "total")
        cells += [f"{1000 * time_[part]:,.1f}" for part in parts]
        print(f"| {' | '.join(cells)} | {rate:,.0f} | {rate / (alone * gpus):.0%} |")


if __name__ == "__main__":
    main()
