"""The pointing game on drawn scenes (Zhang et al. 2016, arXiv 1608.00507): is the peak of a map in the object's box?

    velm fit --config configs/quickstart.yaml
    python benchmarks/pointing.py runs/quickstart/best.ckpt
    python benchmarks/pointing.py runs/quickstart/best.ckpt --saliency 100       # also saliency; needs captum, a minute

Attention maps are those of the first correct caption: each word that names an object, against the box of the object.
Similarity maps and saliency maps are those of phrases such as 'a small red circle'. Chance is a peak at a uniformly
random position. Takes seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import velm
from velm.data.base import Record
from velm.data.synthetic.scenes import COLOURS, SHAPES, SIZES
from velm.explain import saliency_map, similarity_maps, word_maps
from velm.pipeline import Pipeline

KINDS = {word: kind for kind, words in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES)) for word in words}


@dataclass(frozen=True)
class Score:
    """The result over many maps.

    Attributes:
        hits: fraction of the maps whose peak is inside the box, in [0, 1].
        chance: the same for a peak at a uniformly random position.
        rounds: number of maps.
    """

    hits: float
    chance: float
    rounds: int


def hits(maps: Tensor, boxes: Tensor) -> Tensor:
    """Whether the centre of the highest position lies in the box, bool (K,).

    Args:
        maps: float (K, H', W'); of equal peaks the first counts.
        boxes: float (K, 4), left, top, right, bottom as fractions of the image's sides.
    """
    peak = maps.flatten(1).argmax(dim=1)
    return _inside(boxes, maps.shape[1], maps.shape[2]).flatten(1).gather(1, peak[:, None])[:, 0]


def chance(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Fraction of a grid's positions whose centre lies in the box, float (K,)."""
    return _inside(boxes, *grid).flatten(1).float().mean(dim=1)


def play_attention(pipeline: Pipeline, records: Sequence[Record], *, batch_size: int = 100) -> dict[str, Score]:
    """Attention maps of the records' first captions: each word of an object against its box, by kind of word.

    Args:
        pipeline: a model with a decoder.
        records: of `shapes`; their first caption names the objects in order.
        batch_size: images at a time.

    Returns:
        scores of 'size', 'colour' and 'shape'; {} if the decoder returns no attention.
    """
    maps: dict[str, list[Tensor]] = {}
    boxes: dict[str, list[Tensor]] = {}
    images = pipeline.encode_images([record.image for record in records], batch_size=batch_size)
    for start, image in zip(range(0, len(records), batch_size), images, strict=True):
        chunk = records[start : start + batch_size]
        for record, found in zip(chunk, word_maps(pipeline, image, [r.texts[0] for r in chunk]), strict=True):
            if found is None:
                return {}
            objects, number = _boxes(record), 0
            for word, values in zip(found.words, found.maps, strict=True):
                if word in KINDS:
                    maps.setdefault(KINDS[word], []).append(values)
                    boxes.setdefault(KINDS[word], []).append(objects[number])
                    number += KINDS[word] == "shape"  # the noun is the last word of its object
    return {kind: _score(torch.stack(maps[kind]), torch.stack(boxes[kind])) for kind in maps}


def play_similarity(pipeline: Pipeline, records: Sequence[Record]) -> Score:
    """Similarity maps of each object's own phrase, 'a small red circle', against its box."""
    images = [record.image for record in records for _ in _phrases(record)]
    phrases = [phrase for record in records for phrase in _phrases(record)]
    parts = []
    for start, encoded in zip(range(0, len(images), 100), pipeline.encode_images(images, batch_size=100), strict=True):
        parts.append(similarity_maps(pipeline, encoded, phrases[start : start + 100]))
    return _score(torch.cat(parts), torch.cat([_boxes(record) for record in records]))


def play_saliency(pipeline: Pipeline, records: Sequence[Record]) -> Score:
    """Integrated gradients of each object's own phrase, against its box; pixels are the positions."""
    maps = [saliency_map(pipeline, record.image, phrase) for record in records for phrase in _phrases(record)]
    return _score(torch.stack(maps), torch.cat([_boxes(record) for record in records]))


def _score(maps: Tensor, boxes: Tensor) -> Score:
    found, expected = hits(maps, boxes), chance(boxes, (maps.shape[1], maps.shape[2]))
    return Score(float(found.float().mean()), float(expected.mean()), len(maps))


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which centres lie in which box, bool (K, height, width)."""
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    across, down = (left <= x) & (x <= right), (top <= y) & (y <= bottom)
    return down[:, :, None] & across[:, None, :]


def _boxes(record: Record) -> Tensor:
    height, width = record.image.shape[:2]
    sides = torch.tensor([width, height, width, height])
    return torch.tensor([each["box"] for each in record.metadata["objects"]]) / sides


def _phrases(record: Record) -> list[str]:
    return [f"a {each['size']} {each['colour']} {each['shape']}" for each in record.metadata["objects"]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The pointing game on drawn scenes.")
    parser.add_argument("checkpoint", help="of a model trained on shapes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--saliency", type=int, default=0, metavar="N", help="also integrated gradients, on N scenes")
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
