"""A checkpoint in PyTorch beside its exports to ONNX: images and texts embedded and captions written, a second.

    velm export runs/quickstart/best.ckpt --format onnx --output small
    velm export runs/quickstart/best.ckpt --format onnx --quantize int8 --output tiny
    python -m benchmarks.onnx_throughput runs/quickstart/best.ckpt small tiny --threads 2

Medians of rounds in which the systems take turns, all with as many threads; behind each the ratio to PyTorch's. The
tower reads squares that are ready; 'images' includes decoding and resizing. Captions are greedy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import velm
from velm.data.opening import open_dataset
from velm.data.text.vocabulary import sampled_indices

PAUSE = 0.1  # seconds between turns, in which the threads of the other library come to rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", help="of velm export --format onnx")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--split", default="test", help="of the checkpoint's dataset")
    parser.add_argument("--samples", type=int, default=32, help="images and texts of a round, one batch")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = velm.load(args.checkpoint)
    split = open_dataset(str(args.checkpoint), pipeline.data, []).split(args.split)
    records = [split[index] for index in sampled_indices(len(split), args.samples)]
    images, texts = [record.image for record in records], [record.texts[0] for record in records]
    systems: dict[str, Any] = {"torch": pipeline}
    systems |= {folder.name: velm.onnx.load(folder, threads=args.threads) for folder in args.folders}
    print(f"batches of {len(records)}, {args.threads} threads, median of {args.rounds} rounds by turns, a second")
    works: dict[str, Callable[[Any], Any]] = {}
    if pipeline.model.image_encoder is not None:
        squares = torch.stack([pipeline.transform(image) for image in images])
        works["image tower"] = lambda system: tower(system, squares)
    if pipeline.aligned:
        works["images"] = lambda system: system.embed_images(images, batch_size=len(images))
        works["texts"] = lambda system: system.embed_texts(texts)
    if pipeline.writes:
        works["captions"] = lambda system: system.caption(images, batch_size=len(images))
    for name, work in works.items():
        print(f"{name:<12} {rates(work, systems, len(records), args.rounds)}", flush=True)


def tower(system: Any, squares: torch.Tensor) -> Any:
    """The image tower on squares that are ready, the projection of an aligned model included."""
    if not isinstance(system, velm.Pipeline):
        return system.graphs["image"].run(None, {"images": np.asarray(squares)})
    with torch.inference_mode():
        encoded = system.model.encode_image(squares)
        return system.model.embed_image(encoded) if system.aligned else encoded


def rates(work: Callable[[Any], Any], systems: dict[str, Any], count: int, rounds: int) -> str:
    """Items a second of each system and the ratio to the first's."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):
        for name, system in systems.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            work(system)
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    first = next(iter(medians.values()))
    return "  ".join(f"{name} {count / each:.0f} ({first / each:.2f})" for name, each in medians.items())


if __name__ == "__main__":
    main()
