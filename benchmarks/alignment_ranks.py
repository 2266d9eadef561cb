"""Time and network traffic of the alignment losses across processes.

    python benchmarks/alignment_ranks.py --ranks 2 4 --sizes 4096

B is the global batch size (gloo, one machine, one thread per rank). `shared` is the method of training: each rank
computes its share of the pairs. `gathered` computes VELM's loss of the whole batch on every rank, on embeddings
gathered with gradient. Bytes are those counted by the loopback interface, all ranks together, the minimum over the
repeats. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: the folder that contains `benchmarks`

from benchmarks.workloads.contrastive import inputs, ours

LOSSES = ("contrastive", "sigmoid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096], help="B")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="processes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = across(args)
    if args.json:
        print(json.dumps(rows, indent=1))


def across(args: argparse.Namespace) -> list[dict[str, Any]]:
    import torch.multiprocessing as mp

    rows = []
    print(f"{'loss':>12}{'B':>8}{'ranks':>7}{'way':>10}{'s':>8}{'MB moved':>10}")
    for size in args.sizes:
        for ranks in args.ranks:
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(rank_of, args=(ranks, Path(folder), args.losses, size, args.dim, args.repeats), nprocs=ranks)
                rows += json.loads((Path(folder) / "found.json").read_text())
    for row in rows:
        print(
            f"{row['loss']:>12}{row['B']:>8}{row['ranks']:>7}{row['way']:>10}{row['seconds']:>8.2f}{row['mb']:>10.1f}"
        )
    return rows


def rank_of(rank: int, ranks: int, folder: Path, losses: list[str], size: int, dim: int, repeats: int) -> None:
    import torch
    from torch import distributed as dist
    from torch.distributed.nn import functional

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    image, text = (each.detach()[rank::ranks].contiguous().requires_grad_() for each in inputs(size, dim))

    def gathered(value: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return lambda *embeds: value(*(torch.cat(functional.all_gather(each)) for each in embeds))

    rows = []
    for name in losses:
        for way, value in (("shared", ours(name, dist.group.WORLD)), ("gathered", gathered(ours(name)))):
            seconds, moved = [], []
            for _ in range(repeats + 1):
                dist.barrier()
                time.sleep(0.2)
                start, before = time.perf_counter(), loopback()
                value(image, text).backward()
                dist.barrier()
                seconds.append(time.perf_counter() - start)
                time.sleep(0.2)
                moved.append(loopback() - before)
            found = {"seconds": statistics.median(seconds[1:]), "mb": min(moved) / 1e6}
            rows.append({"loss": name, "B": size, "ranks": ranks, "way": way, **found})
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def loopback() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


if __name__ == "__main__":
    main()
