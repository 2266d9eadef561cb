"""Memory, start-up time and throughput of a table of paths and captions, by default of ten million rows.

    python benchmarks/rows.py --folder /tmp/rows --workers 0 2

Writes a seeded table into the folder (once; 0.9 GB) and opens it in its own process as training does, by
`VisionLanguageData.train_dataloader`, for one epoch. The same with a table of a thousand rows measures Python, torch
and Lightning alone, which is subtracted. No images are read (`check_files: false`, no transform): their bytes are not
the table's. The tokenizer is `byte`, which learns nothing, so start-up time is that of the table.

    memory   of the main process and its workers together, shared pages counted once: PSS of /proc/PID/smaps_rollup
             without program files, which other programs may share
    peak     largest resident memory of the main process, as reported by /usr/bin/time -v
    ratio    memory above that of the small table, divided by the bytes of paths and captions

An epoch of ten million rows takes several minutes; --batches 5000 stops early. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MIB = 2**20
SYLLABLES = ("ba", "do", "gi", "lu", "me", "no", "ra", "si", "ta", "vo")
BLOCK = 250_000  # rows written at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--captions", type=int, default=1, help="rows per image; each is a sample")
    parser.add_argument("--scattered", action="store_true", help="spread the rows of an image over the table")
    parser.add_argument("--kind", choices=("csv", "parquet"), default="csv")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batches", type=int, help="number of batches to read; default: the whole epoch")
    parser.add_argument("--step", choices=("write", "measure"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "write":
        write(args.folder, args.rows, args.captions, args.scattered, args.kind)
    elif args.step == "measure":
        print(json.dumps(measure(table(args), args.workers[0], args.batches, args.captions)))
    else:
        report(args)


def table(args: argparse.Namespace) -> Path:
    """Path of the table with these rows."""
    scattered = "-scattered" if args.scattered else ""
    return Path(args.folder) / f"{args.rows}-{args.captions}{scattered}.{args.kind}"


def write(folder: Path, rows: int, captions: int, scattered: bool, kind: str) -> None:
    """Write the table in blocks, and the bytes of its paths and captions to a file beside it."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv, parquet

    rng, text_bytes, images = np.random.default_rng(0), 0, rows // captions
    words_of = np.array(SYLLABLES + tuple(a + b for a in SYLLABLES for b in SYLLABLES))  # 2 or 4 letters
    path = folder / f"{rows}-{captions}{'-scattered' if scattered else ''}.{kind}"
    schema = pa.schema([("image_path", pa.string()), ("text", pa.string())])
    make = csv.CSVWriter if kind == "csv" else parquet.ParquetWriter
    with make(str(path), schema) as writer:
        for start in range(0, rows, BLOCK):
            numbers = np.arange(start, min(start + BLOCK, rows))
            numbers = numbers % images if scattered else numbers // captions
            paths = [f"images/{number % 1000:03d}/{number:08d}.jpg" for number in numbers.tolist()]
            words = words_of[rng.integers(0, len(words_of), (len(numbers), 11))].tolist()
            block = pa.table([paths, [" ".join(each) for each in words]], schema=schema)
            text_bytes += sum(len(value) for column in block.to_pydict().values() for value in column)
            writer.write_table(block)
    path.with_suffix(path.suffix + ".json").write_text(json.dumps({"text_bytes": text_bytes}))


def measure(path: Path, workers: int, batches: int | None, captions: int) -> dict[str, Any]:
    """Open the table, read an epoch or a part of it, and return seconds, samples and memory (MiB)."""
    import resource

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as `velm` does
    from velm.training.data import VisionLanguageData

    options = {"split_column": None, "image_id_column": None, "check_files": False}
    begun = time.perf_counter()
    data = VisionLanguageData(
        dataset={"name": path.suffix[1:], "path": str(path), **options}, tokenizer="byte", batch_size=64, seed=0,
        num_workers=workers, captions="all" if captions > 1 else "random",
    )  # fmt: skip
    loader = data.train_dataloader()
    loader.dataset.transform = None  # type: ignore[attr-defined]  # the images do not exist
    opened, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = len(loader) if batches is None else min(batches, len(loader))
    marks, memory, samples, first = {count // 10, count // 2, count}, [], 0, 0.0
    for number, batch in enumerate(loader, start=1):
        if number == 1:
            first = time.perf_counter() - begun
            memory.append(shared_out())
            walked = time.perf_counter()
        elif number in marks:
            memory.append(shared_out())
        samples += len(batch.tokens)
        if number == count:
            break
    speed = (samples - 64) / (time.perf_counter() - walked)
    return {
        "opened_s": opened, "first_batch_s": first, "samples_s": speed, "samples": samples, "memory": memory,
        "opening_peak": peak, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def shared_out() -> float:
    """PSS of this process and its children, MiB."""
    own = Path("/proc/self").resolve()
    family = [own] + [p for p in own.parent.glob("[0-9]*") if f"\nPPid:\t{own.name}\n" in _read(p / "status")]
    lines = [line for each in family for line in _read(each / "smaps_rollup").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1024


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


def run(args: argparse.Namespace, rows: int, workers: int) -> dict[str, Any]:
    """A measurement in a new process, under /usr/bin/time -v; writes the table if it does not exist."""
    options = ["--folder", str(args.folder), "--rows", str(rows), "--captions", str(args.captions), "--kind", args.kind]
    options += ["--scattered"] * args.scattered + ["--workers", str(workers)]
    if args.batches is not None:
        options += ["--batches", str(args.batches)]
    command = [sys.executable, str(Path(__file__).resolve()), *options, "--step"]
    path = table(argparse.Namespace(**{**vars(args), "rows": rows}))
    if not path.with_suffix(path.suffix + ".json").exists():
        subprocess.run([*command, "write"], check=True)
    done = subprocess.run(["/usr/bin/time", "-v", *command, "measure"], check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    resident = next(line for line in done.stderr.splitlines() if "Maximum resident set size" in line)
    written = json.loads(path.with_suffix(path.suffix + ".json").read_text())
    return {**result, **written, "timed_peak": int(resident.split()[-1]) / 1024}


def report(args: argparse.Namespace) -> None:
    args.folder.mkdir(parents=True, exist_ok=True)
    for workers in args.workers:
        small, large = (run(args, rows, workers) for rows in (1000, args.rows))
        text, base = large["text_bytes"] / MIB, max(small["memory"])
        print(f"{args.rows:,} rows ({args.kind}), {text:,.0f} MiB of text, {workers} workers")
        print(f"  small table {base:,.0f} MiB, subtracted below")
        print(f"  opened after {large['opened_s']:.1f} s, first batch after {large['first_batch_s']:.1f} s")
        print(f"  {large['samples']:,} samples read, {large['samples_s']:,.0f} per second")
        for when, memory in zip(("first batch", "tenth", "half", "end"), large["memory"], strict=False):
            print(f"  memory, {when:<12} {memory:>8,.0f} MiB, ratio {(memory - base) / text:.2f}")
        for when, key in (("opening", "opening_peak"), ("whole run", "timed_peak")):
            peak = large[key]
            print(f"  peak,   {when:<12} {peak:>8,.0f} MiB, ratio {(peak - small[key]) / text:.2f}", flush=True)


if __name__ == "__main__":
    main()
