"""Index photographs beside rclip's way, and search exactly beside faiss.

    velm export runs/quickstart/best.ckpt --format onnx --output quickstart_onnx
    python -m benchmarks.search index runs/quickstart/best.ckpt quickstart_onnx ../shared/data/flickr8k/images
    python -m benchmarks.search latency --rows 10000 100000 1000000

`index` takes turns between `velm.search.update` and a loop as in rclip 3.3 (one thread decodes and resizes with Pillow,
onnxruntime encodes batches of 8 with the same tower, sqlite keeps a row per image with its hash and vector), and gives
the medians of images a second and their ratio. `latency` writes random unit vectors and runs each system in a process
of its own: milliseconds of a single query for its 10 nearest (p50, p99), recall@10 against the exact result, and the
peak of its memory without the memory-mapped file, above what the imports take.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIM, QUERIES, NEAREST = 512, 200, 10
PART = 65_536
SYSTEMS = ("velm", "faiss_flat", "faiss_hnsw", "faiss_ivfpq", "velm_ivfpq")
RCLIP = "rclip's way"
HNSW_ROWS = 100_000  # above, building its graph takes longer than all else together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    index = kinds.add_parser("index")
    index.add_argument("checkpoint", type=Path)
    index.add_argument("onnx", type=Path, help="folder of velm export --format onnx of that checkpoint")
    index.add_argument("photographs", type=Path)
    index.add_argument("--rounds", type=int, default=3)
    latency = kinds.add_parser("latency")
    latency.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    latency.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    for each in (index, latency):
        each.add_argument("--threads", type=int, default=2)
    measure = kinds.add_parser("measure")  # a process of `latency`
    measure.add_argument("system")
    measure.add_argument("folder", type=Path)
    measure.add_argument("threads", type=int)
    args = parser.parse_args()
    if args.kind == "index":
        compare_indexing(args)
    elif args.kind == "latency":
        compare_latency(args)
    else:
        print(json.dumps(measure_system(args.system, args.folder, args.threads)))


def compare_indexing(args: argparse.Namespace) -> None:
    """Print images a second of both, by turns, and the cosine of their vectors."""
    import torch

    import velm
    from velm.search import Index, update
    from velm.search.sources import folder_source

    photographs = Path(os.path.abspath(args.photographs))
    torch.set_num_threads(args.threads)
    pipeline, exported = velm.load(args.checkpoint), velm.onnx.load(args.onnx, threads=args.threads)
    seconds: dict[str, list[float]] = {"velm": [], RCLIP: []}
    with tempfile.TemporaryDirectory() as place:
        for number in range(args.rounds):
            folder, database = Path(place) / f"index{number}", Path(place) / f"{number}.sqlite"
            began = time.perf_counter()
            update(pipeline, folder_source(photographs), folder)
            seconds["velm"].append(time.perf_counter() - began)
            began = time.perf_counter()
            count = as_rclip(exported, photographs, database)
            seconds[RCLIP].append(time.perf_counter() - began)
        index, rows = (
            Index.open(folder),
            sqlite3.connect(database).execute("select path, vector from images").fetchall(),
        )
        theirs = {path: np.frombuffer(vector, np.float32) for path, vector in rows}
        cosines = [float(index.vector(row).astype(np.float32) @ theirs[index.path(row)]) for row in range(len(index))]
        began = time.perf_counter()
        update(pipeline, folder_source(photographs), folder)
        again = time.perf_counter() - began
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, each in medians.items():
        print(f"{name:<12} {count} images in {each:.1f} s, {count / each:.0f} a second")
    print(f"ratio {medians[RCLIP] / medians['velm']:.2f}")
    print(f"cosine of the vectors: mean {np.mean(cosines):.4f}, least {min(cosines):.4f} (Pillow resizes otherwise)")
    print(f"velm again, nothing changed: {again:.2f} s")


def as_rclip(exported: Any, photographs: Path, database: Path) -> int:
    """Index a folder as rclip does; the number of images."""
    from PIL import Image, ImageOps

    size, session = exported.transform.image_size, exported.graphs["image"]
    rows = sqlite3.connect(database)
    rows.execute("create table images (path text unique, modified real, size int, hash text, vector blob)")

    def square(path: Path) -> np.ndarray:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(resized).transpose(2, 0, 1)

    paths = sorted(photographs.rglob("*.jpg"))
    for start in range(0, len(paths), 8):
        chunk = paths[start : start + 8]
        vectors = session.run(None, {"images": np.stack([square(path) for path in chunk])})[0]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for path, vector in zip(chunk, vectors, strict=True):
            status, digest = path.stat(), hashlib.sha256(path.read_bytes()).hexdigest()
            row = (str(path), status.st_mtime, status.st_size, digest, vector.astype(np.float32).tobytes())
            rows.execute("insert into images values (?, ?, ?, ?, ?)", row)
        rows.commit()
    return len(paths)


def compare_latency(args: argparse.Namespace) -> None:
    """Print a row of the table for each size and system."""
    print("| rows | system | p50 ms | p99 ms | recall@10 | memory MB | built in s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_vectors(folder, rows)
            for system in args.systems:
                if system == "faiss_hnsw" and rows > HNSW_ROWS:
                    continue
                command = [sys.executable, "-m", "benchmarks.search", "measure", system, place, str(args.threads)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                nearest = np.array(found.pop("nearest"))
                if system == "velm":
                    exact = nearest
                recall = np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(nearest, exact, strict=True)])
                numbers = (
                    f"{found['p50']:.1f} | {found['p99']:.1f} | {recall:.3f} | {found['mb']:.0f} | {found['built']:.0f}"
                )
                print(f"| {rows:,} | {system} | {numbers} |", flush=True)


def write_vectors(folder: Path, rows: int) -> None:
    """Parts of random unit vectors, float16, and queries, float32."""
    random = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        vectors = random.standard_normal((count, DIM), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    for start in range(0, rows, PART):
        np.save(folder / f"part_{start:09}.npy", unit(min(PART, rows - start)).astype(np.float16))
    np.save(folder / "queries.npy", unit(QUERIES))


def measure_system(system: str, folder: Path, threads: int) -> dict[str, Any]:
    """Milliseconds of single queries, the rows found, MB above the imports, seconds to build."""
    import faiss
    import torch

    import velm.search.approximate  # noqa: F401 - before the memory is measured

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    parts = [np.load(path, mmap_mode="c") for path in sorted(folder.glob("part_*.npy"))]
    queries = np.load(folder / "queries.npy")
    before, peak = anonymous_mb(), 0.0
    began = time.perf_counter()
    ask = SEARCHERS[system](parts, folder)
    built = time.perf_counter() - began
    times, nearest = [], []
    for query in queries:
        began = time.perf_counter()
        nearest.append(ask(query[None]))
        times.append(1000 * (time.perf_counter() - began))
        peak = max(peak, anonymous_mb())
    p50, p99 = np.percentile(times[1:], [50, 99])
    return {"p50": p50, "p99": p99, "mb": peak - before, "built": built, "nearest": nearest}


def anonymous_mb() -> float:
    """Resident memory without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


Ask = Callable[[np.ndarray], list[int]]


def exact(parts: list[np.ndarray], folder: Path) -> Ask:
    import torch

    from velm.search.exact import top_k

    live = [np.ones(len(part), bool) for part in parts]
    return lambda query: [row for row, _ in top_k(parts, live, torch.from_numpy(query), NEAREST)[0]]


def of_faiss(make: Callable[[int], Any], options: Callable[[Any], None] = lambda index: None) -> Callable[..., Ask]:
    """A search in an index of faiss with all vectors."""

    def searcher(parts: list[np.ndarray], folder: Path) -> Ask:
        index = make(sum(map(len, parts)))
        if not index.is_trained:
            index.train(np.ascontiguousarray(parts[0]).astype(np.float32))
        for part in parts:
            index.add(part.astype(np.float32))
        options(index)
        return lambda query: index.search(query, NEAREST)[1][0].tolist()

    return searcher


def flat(rows: int) -> Any:
    import faiss

    return faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def hnsw(rows: int) -> Any:
    import faiss

    index = faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_fp16, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 80, 256
    return index


def ivfpq(rows: int) -> Any:
    import faiss

    return faiss.IndexIVFPQ(
        faiss.IndexFlatIP(DIM), DIM, max(1, min(1024, rows // 64)), 64, 8, faiss.METRIC_INNER_PRODUCT
    )


def probes(index: Any) -> None:
    index.nprobe = max(8, index.nlist // 16)


def velm_ivfpq(parts: list[np.ndarray], folder: Path) -> Ask:
    import torch

    from velm.search.approximate import Approximate, build

    about, live = {"dim": DIM, "generation": 0}, [np.ones(len(part), bool) for part in parts]
    build(folder, "ivfpq", about, parts)
    approximate = Approximate.open(folder, "ivfpq", about, parts, live)
    return lambda query: [row for row, _ in approximate.search(torch.from_numpy(query), NEAREST)[0]]


SEARCHERS = {
    "velm": exact,
    "faiss_flat": of_faiss(flat),
    "faiss_hnsw": of_faiss(hnsw),
    "faiss_ivfpq": of_faiss(ivfpq, probes),
    "velm_ivfpq": velm_ivfpq,
}


if __name__ == "__main__":
    main()
