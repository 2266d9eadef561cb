"""The alignment losses alone, forward and backward, beside open_clip's and a plain formula: seconds and memory.

    pip install open_clip_torch
    python benchmarks/contrastive.py                                # B = 4,096, 8,192, 16,384; one thread
    python benchmarks/contrastive.py --threads 2
    python benchmarks/contrastive.py --sizes 32768 --losses contrastive --repeats 1
    python benchmarks/contrastive.py --ranks 2 4                    # across processes: seconds, bytes on the wire

First it sees that values and gradients are equal. Then the sides take turns, each measurement in a process of its own,
on L2-normalised random embeddings, distinct pictures: one step to warm up, then one that counts. Seconds are of the
processor with one thread, of the clock with more; memory is the highest resident size above what there was before
the first step, gradients included (their size is told beside it); medians. The peer of `contrastive` is ClipLoss, of
`sigmoid` SigLipLoss, both of open_clip, of `triplet` the formula on the whole
matrix in plain torch. A size whose peer would need more than the free memory is measured without it. Linux only.

With --ranks: B is that of all ranks together (gloo, one machine, a thread each). `shared` is what training does, each
rank a share of the pairs; `gathered` is VELM's loss of the whole batch on every rank, its embeddings gathered with
gradient. Bytes are those that the loopback interface counts, the fewest of the repeats, all ranks together.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOSSES = ("contrastive", "sigmoid", "triplet")
SCALE, SIGMOID_SCALE, BIAS, MARGIN = 1 / 0.07, 10.0, -10.0, 0.2
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384], help="B")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", help="measure across as many processes instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=("velm", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is not None:
        print(json.dumps(measure(args.side, args.losses[0], args.sizes[0], args.dim)))
        return
    rows = across(args) if args.ranks else alone(args)
    if args.json:
        print(json.dumps(rows, indent=1))


def inputs(size: int, dim: int) -> tuple[Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(size, dim, generator=generator) for _ in range(2))
    image, text = (torch.nn.functional.normalize(each, dim=1).requires_grad_() for each in made)
    return image, text


def ours(name: str, group: Any = None) -> Callable[[Any, Any], Any]:
    """VELM's loss as a function of the embeddings, of distinct pictures."""
    import torch
    from torch import distributed as dist

    from velm.losses import alignment
    from velm.outputs import Batch, VisionLanguageOutput

    loss = {
        "contrastive": lambda: alignment.ContrastiveLoss(temperature=1 / SCALE),
        "sigmoid": lambda: alignment.SigmoidLoss(temperature=1 / SIGMOID_SCALE, bias=BIAS),
        "triplet": lambda: alignment.TripletLoss(margin=MARGIN),
    }[name]()

    def value(image: Any, text: Any) -> Any:
        first = 0 if group is None else len(image) * dist.get_rank(group)
        ids = torch.arange(first, first + len(image))
        batch = Batch(images=None, tokens=None, mask=None, image_ids=ids, group=group)
        return loss(VisionLanguageOutput(image_embeds=image, text_embeds=text), batch)

    return value


def peers(name: str) -> Callable[[Any, Any], Any]:
    """open_clip's loss; for the triplet loss the formula."""
    import torch

    if name == "triplet":
        return plain_triplet
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        sys.exit("This measures beside open_clip: pip install open_clip_torch")
    # its file alone: the package would bring timm and torchvision along, which take memory
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scale = SCALE if name == "contrastive" else SIGMOID_SCALE
    log_scale, bias = (torch.nn.Parameter(torch.tensor(each)) for each in (torch.tensor(scale).log().item(), BIAS))
    loss = module.ClipLoss() if name == "contrastive" else module.SigLipLoss()
    return lambda *embeds: loss(*embeds, log_scale.exp(), *([] if name == "contrastive" else [bias]))


def plain_triplet(image: Any, text: Any) -> Any:
    import torch

    similarity = image @ text.T
    match, same = similarity.diagonal(), torch.eye(len(image), dtype=torch.bool)
    total = similarity.new_zeros(())
    for scores in (similarity, similarity.T):
        total = total + (MARGIN + scores - match[:, None]).clamp(min=0).masked_fill(same, 0).amax(1).sum()
    return total / len(image)


def check(name: str, size: int, dim: int) -> dict[str, float]:
    """How far value and gradients of the two sides are apart, each over its largest number."""
    import torch

    image, text = inputs(size, dim)
    results = []
    for side in (ours(name), peers(name)):
        value = side(image, text)
        results.append((value.detach(), *torch.autograd.grad(value, (image, text))))
    apart = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True)]
    found = dict(zip(("value", "d_image", "d_text"), apart, strict=True))
    if max(apart) > 1e-4 or apart[0] > 1e-6:
        sys.exit(f"{name}: the two sides differ: {found}")
    return found


def measure(side: str, name: str, size: int, dim: int) -> dict[str, float]:
    """A step's seconds and the highest resident size above what was there before, MiB."""
    import torch

    threads = torch.get_num_threads()
    loss = {"velm": ours, "peer": peers}[side](name)
    loss(*inputs(64, dim)).backward()  # libraries set themselves up
    image, text = inputs(size, dim)
    before, clock = resident("VmRSS"), time.process_time if threads == 1 else time.perf_counter
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(2):
        image.grad = text.grad = None
        start = clock()
        loss(image, text).backward()
        seconds = clock() - start
    return {"seconds": seconds, "mib": resident("VmHWM") - before}


def resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def fits(name: str, size: int) -> bool:
    """Whether the peer's B x B matrices find room."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    return size * size * 4 * (8 if name == "triplet" else 5.5) < free


def alone(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in args.losses:
        far = check(name, min([*args.sizes, 4096]), args.dim)
        apart = ", ".join(f"{key} {value:.0e}" for key, value in far.items())
        print(f"{name}, {args.threads} thread(s): equal, differences {apart}")
        seconds, memory = ("".join(f"{side + ' ' + unit:>10}" for side in ("peer", "velm")) for unit in ("s", "MiB"))
        print(f"{'B':>8}{seconds}{'ratio':>7}{memory}{'ratio':>7}{'gradients':>11}")
        for size in args.sizes:
            sides = ["peer", "velm"] if fits(name, size) else ["velm"]
            runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(args.repeats):
                for side in sides:
                    runs[side].append(in_a_process(args, side, name, size))
            row: dict[str, Any] = {
                "loss": name,
                "B": size,
                "threads": args.threads,
                "gradients_mib": 2 * size * args.dim * 4 / MIB,
            }
            for side, found in runs.items():
                row |= {f"{side}_{key}": statistics.median(each[key] for each in found) for key in found[0]}
            rows.append(row)
            print_row(row)
    return rows


def print_row(row: dict[str, Any]) -> None:
    if "peer_seconds" not in row:
        print(f"{row['B']:>8}{'-':>10}{row['velm_seconds']:>10.2f}{'':>7}{'-':>10}{row['velm_mib']:>10.0f}{'':>7}"
              f"{row['gradients_mib']:>11.0f}   the peer would not fit", flush=True)  # fmt: skip
        return
    speed, memory = row["peer_seconds"] / row["velm_seconds"], row["peer_mib"] / row["velm_mib"]
    print(f"{row['B']:>8}{row['peer_seconds']:>10.2f}{row['velm_seconds']:>10.2f}{speed:>7.2f}{row['peer_mib']:>10.0f}"
          f"{row['velm_mib']:>10.0f}{memory:>7.1f}{row['gradients_mib']:>11.0f}", flush=True)  # fmt: skip


def in_a_process(args: argparse.Namespace, side: str, name: str, size: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--losses", name, "--sizes", str(size)]
    threads = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    command += ["--dim", str(args.dim)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=threads)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


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
