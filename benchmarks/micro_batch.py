"""Peak memory and time of a training step against the batch size, with and without `micro_batch_size`.

    python benchmarks/micro_batch.py --output docs/micro_batch.svg

A small ViT, a text Transformer and a decoder with contrastive and captioning loss, on random images of 224 pixels, on
a CPU in float32. Every step runs in its own process. Without micro-batches the series ends before the step that would
exceed --limit. Linux only.

    live          largest number of bytes of tensors alive at one time, without weights, their gradients and the batch
    resident      largest resident memory of the process (VmHWM of /proc/self/status), less that before the batch was
                  created: it includes the batch and what malloc keeps between micro-batches
    embeddings    bytes of the embeddings of both towers and of their gradients
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

MIB = 2**20
LENGTH, WIDTH, VOCABULARY = 16, 256, 8192
MODEL: dict[str, Any] = {
    "image_encoder": {"name": "vit", "dim": 192, "depth": 6, "heads": 3, "patch_size": 32},
    "text_encoder": {"name": "transformer", "dim": 128, "depth": 4, "heads": 4, "max_length": LENGTH},
    "decoder": {"name": "transformer", "dim": 128, "depth": 2, "heads": 4, "max_length": LENGTH},
    "losses": {"contrastive": {}, "captioning": {}},
    "embed_dim": WIDTH,
    "vocab_size": VOCABULARY,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--micro_batch_size", type=int, default=32)
    parser.add_argument("--limit", type=float, default=6.0, metavar="GIB", help="memory limit without micro-batches")
    parser.add_argument("--output", type=Path, help="SVG file to write")
    parser.add_argument("--step", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step is not None:
        print(json.dumps(measure(args.step[0], args.step[1] or None)))
        return
    rows = report(args.batches, args.micro_batch_size, args.limit * 1024)
    if args.output is not None:
        args.output.write_text(drawing(rows), encoding="utf-8")


def measure(samples: int, size: int | None) -> dict[str, float]:
    """Memory in MiB and seconds of one step in this process."""
    import torch

    from velm.outputs import Batch
    from velm.planning.counting import PeakMemory
    from velm.training.task import VisionLanguageTask

    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    task = VisionLanguageTask(**MODEL, micro_batch_size=size).train()
    task.__dict__["_trainer"], task._jit_is_scripting = type("Trainer", (), {"world_size": 1})(), False
    gradients = [torch.zeros_like(parameter) for parameter in task.parameters()]
    for parameter, gradient in zip(task.parameters(), gradients, strict=True):
        parameter.grad = gradient

    def step(number: int, watched: PeakMemory | None = None) -> float:
        images = torch.randint(0, 256, (number, 3, 224, 224), dtype=torch.uint8)
        tokens = torch.randint(4, VOCABULARY, (number, LENGTH))
        mask = torch.ones_like(tokens, dtype=torch.bool)
        batch = Batch(images=images, tokens=tokens, mask=mask, image_ids=torch.arange(number))
        begun = time.perf_counter()
        if watched is not None:
            watched.ignore([images, tokens, mask, batch.image_ids, *task.parameters(), *gradients])
        with watched or contextlib.nullcontext():
            task.compute_losses(batch)[0].backward()
        return time.perf_counter() - begun

    step(2)  # warm up: kernels allocate their workspace
    before = peak()
    seconds = step(samples)
    resident, live = peak() - before, PeakMemory()
    step(samples, live)
    return {"live": live.peak / MIB, "resident": resident, "seconds": seconds}


def peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def report(batches: list[int], size: int, limit: float) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    print(
        f"| batch | whole: live, MiB | resident | s | micro-batches of {size}: live | resident | s | embeddings, MiB |"
    )
    print("| --- " * 8 + "|")
    rows: list[dict[str, Any]] = []
    for samples in batches:
        before = rows[-1] if rows else None
        fits = before is None or (before["whole"] and before["whole"]["resident"] * samples / before["batch"] <= limit)
        whole, micro = _own_process(samples, 0) if fits else None, _own_process(samples, size)
        rows.append({"batch": samples, "whole": whole, "micro": micro})
        cells = [
            f"{e['live']:,.1f} | {e['resident']:,.0f} | {e['seconds']:.1f}" if e else " | | " for e in (whole, micro)
        ]
        print(f"| {samples:,} | {' | '.join(cells)} | {16 * WIDTH * samples / MIB:,.1f} |", flush=True)
    return rows


def _own_process(samples: int, size: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--step", str(samples), str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def drawing(rows: list[dict[str, Any]]) -> str:
    """SVG plot of peak memory against batch size, both axes linear."""
    width, height, left, bottom = 560, 300, 64, 40
    most = max(each["live"] for row in rows for each in (row["whole"], row["micro"]) if each)
    last = max(row["batch"] for row in rows)

    def place(batch: float, mib: float) -> str:
        across, up = (width - left - 20) * batch / last, (height - bottom - 20) * mib / most
        return f"{left + across:.1f},{height - bottom - up:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#444"><rect width="{width}" height="{height}" fill="#fff"/>'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(last * share, most * share).split(",")
        parts.append(f'<path d="M{left} {y}H{width - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{float(y) + 4}" text-anchor="end">{most * share:,.0f}</text>')
        parts.append(f'<text x="{x}" y="{height - bottom + 16}" text-anchor="middle">{last * share:,.0f}</text>')
    for name, colour, label in (("whole", "#c0392b", "whole batch"), ("micro", "#2471a3", "micro-batches")):
        points = [(row["batch"], row[name]["live"]) for row in rows if row[name]]
        line = " ".join(place(*point) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{p[0]}" cy="{p[1]}" r="3" fill="{colour}"/>' for p in (c.split(",") for c in line.split())
        ]
        x, y = place(*points[-1]).split(",")
        parts.append(f'<text x="{float(x) - 8}" y="{float(y) - 10}" text-anchor="end" fill="{colour}">{label}</text>')
    parts.append(f'<text x="{left}" y="14">tensors alive at the peak of a step, MiB</text>')
    parts.append(f'<text x="{width - 20}" y="{height - 8}" text-anchor="end">samples of the batch</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
