"""Bulk captions that survive a kill: `velm caption --output` by two processes, and Ray Data by two workers.

    python -m benchmarks.bulk runs/quickstart/best.ckpt --images 100000
    python -m benchmarks.bulk runs/quickstart/best.ckpt --images 2000 --part_size 100 --without_ray

Drawn scenes are captioned by two processes. One is killed by SIGKILL after a third of its parts and started again. Then
every row must be there once, and a sample must have the captions that `Pipeline.caption` gives. Ray captions the same
scenes, all of which must agree with the parts. Drawing a scene is part of the time, as reading an image is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE = 500  # images captioned again, alone
WORKERS = 2
OBJECT_STORE = 200 * 1024**2  # bytes


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = _parser().parse_args(argv)
    config = {"name": "shapes", "train_size": args.images}
    with tempfile.TemporaryDirectory(prefix="velm-bulk-") as folder:
        output = Path(folder) / "captions"
        found = disturbed(args.checkpoint, config, output, args)
        rows = read(output)
        found |= compare(args.checkpoint, config, rows)
    print(json.dumps(found, indent=1), flush=True)
    if not args.without_ray:
        by = by_ray(args.checkpoint, config, rows, args.batch_size)
        print(json.dumps(by, indent=1))
        found |= by
    return found


def disturbed(checkpoint: str, config: dict[str, Any], output: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Caption by two processes, of which the second is killed once; images a second from start to end."""
    started = time.monotonic()
    first, second = (_start(checkpoint, config, output, shard, args) for shard in range(WORKERS))
    parts = -(-args.images // args.part_size)
    enough = max(1, parts // WORKERS // 3)
    while (done := len(list(output.glob("part-*[13579].parquet")))) < enough:
        if second.poll() is not None:
            raise RuntimeError(f"the second process ended with {second.returncode} before it could be killed")
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    killed = second.wait()
    second = _start(checkpoint, config, output, 1, args)
    codes = [process.wait() for process in (first, second)]
    seconds = time.monotonic() - started
    return {
        "images": args.images,
        "killed": {"exit code": killed, "after parts": done, "of its parts": parts // WORKERS},
        "exit codes": codes,
        "velm: images a second": round(args.images / seconds, 1),
    }


def _start(
    checkpoint: str, config: dict[str, Any], output: Path, shard: int, args: argparse.Namespace
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "velm", "caption", checkpoint, json.dumps(config), "--split", "train"]
    command += ["--output", str(output), "--shard", f"{shard}/{WORKERS}", "--part_size", str(args.part_size)]
    command += ["--batch_size", str(args.batch_size)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def read(output: Path) -> list[dict[str, Any]]:
    """Rows in the order of the input."""
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(output).to_table()
    rows: list[dict[str, Any]] = table.sort_by([("part", "ascending"), ("row", "ascending")]).to_pylist()
    return rows


def compare(checkpoint: str, config: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows, distinct rows, bad rows, and differences of a sample from `Pipeline.caption`."""
    import velm

    records = velm.datasets.build(config).split("train")
    sample = np.linspace(0, len(records) - 1, min(SAMPLE, len(records))).astype(int).tolist()
    expected = velm.load(checkpoint).caption([records[i].image for i in sample])
    differences = sum(rows[i]["captions"][0] != caption for i, caption in zip(sample, expected, strict=True))
    return {
        "rows": len(rows),
        "distinct rows": len({(row["part"], row["row"]) for row in rows}),
        "ids in order": [row["id"] for row in rows] == [records.text_only(i).image_id for i in range(len(records))],
        "bad rows": sum(row["error"] is not None for row in rows),
        "sample": len(sample),
        "differences of the sample": differences,
    }


@lru_cache(maxsize=1)
def _scenes(config: str) -> Any:
    import velm

    return velm.datasets.build(json.loads(config)).split("train")


def draw(batch: dict[str, np.ndarray], config: str) -> dict[str, np.ndarray]:
    """The scenes of a batch of indices, column `image`."""
    return {**batch, "image": np.stack([_scenes(config)[int(i)].image for i in batch["id"]])}


def by_ray(checkpoint: str, config: dict[str, Any], rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Caption by two workers of a local Ray cluster; images a second without the start of the cluster."""
    import ray

    from benchmarks.bulk import draw  # by its module: workers cannot import what is in __main__
    from velm.integrations.ray import CaptionImages

    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]), "OMP_NUM_THREADS": "1"}}
    ray.init(
        num_cpus=WORKERS + 1, include_dashboard=False, object_store_memory=OBJECT_STORE, runtime_env=environment,
        log_to_driver=False,
    )  # fmt: skip
    try:
        started = time.monotonic()
        captions = (
            ray.data.range(len(rows))
            .map_batches(draw, fn_kwargs={"config": json.dumps(config)}, batch_size=batch_size)
            .map_batches(
                CaptionImages,
                fn_constructor_kwargs={"checkpoint": checkpoint, "batch_size": batch_size},
                compute=ray.data.ActorPoolStrategy(size=WORKERS),
                batch_size=batch_size,
            )
            .select_columns(["id", "caption"])
            .to_pandas()
        )
        seconds = time.monotonic() - started
    finally:
        ray.shutdown()
    found = dict(zip(captions["id"].tolist(), captions["caption"].tolist(), strict=True))
    return {
        "ray: rows": len(captions),
        "ray: distinct rows": len(found),
        "ray: differences": sum(found.get(i) != row["captions"][0] for i, row in enumerate(rows)),
        "ray: images a second": round(len(rows) / seconds, 1),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="of drawn scenes, 64 pixels: runs/quickstart/best.ckpt")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--part_size", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--without_ray", action="store_true")
    return parser


if __name__ == "__main__":
    main()
