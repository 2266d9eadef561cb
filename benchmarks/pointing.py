"""The pointing game on drawn scenes: how often a map peaks inside the box of the thing it is about, beside chance.

    velm fit --config configs/quickstart.yaml
    python benchmarks/pointing.py runs/quickstart/best.ckpt
    python benchmarks/pointing.py runs/quickstart/best.ckpt --saliency 100       # also, needs captum, a minute

Word attention is that of the first right description, each word of an object against the object's box; similarity maps
and saliency are of 'a small red circle' and its like. Chance is a peak at a position drawn at random. Expect seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

import velm
from velm.explain.pointing import Score, play_attention, play_saliency, play_similarity


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The pointing game on drawn scenes.")
    parser.add_argument("checkpoint", help="of a model trained on shapes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--saliency", type=int, default=0, metavar="N", help="also integrated gradients, N scenes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    pipeline = velm.load(args.checkpoint)
    records = velm.datasets.build(pipeline.data["dataset"]).split(args.split)
    scores: dict[str, Score] = {}
    if pipeline.writes:
        scores |= {f"attention of the {kind}": s for kind, s in play_attention(pipeline, records).items()}
    if pipeline.aligned:
        scores["similarity map"] = play_similarity(pipeline, records)
    if args.saliency:
        scores["integrated gradients"] = play_saliency(pipeline, records[: args.saliency])
    if args.json:
        print(json.dumps({name: asdict(score) for name, score in scores.items()}))
        return 0
    for name, score in scores.items():
        print(f"{name:<24} {score.hits:.3f}   chance {score.chance:.3f}   {score.rounds} maps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
