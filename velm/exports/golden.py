"""Golden inputs: images of noise and short texts, with what a model says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from velm.backbone import Backbone
from velm.pipeline import Pipeline

__all__ = [
    "TOKENS",
    "Difference",
    "Golden",
    "compare",
    "golden_inputs",
    "golden_maps",
    "golden_outputs",
    "maps_of",
    "read_golden",
    "squares",
    "write_golden",
]

TEXTS = ("a dog", "two red circles above a blue square", "it's number 3!", "a green field, seen from afar, in the rain")
TOKENS = 12
"""Longest caption, in tokens."""


@dataclass(frozen=True)
class Golden:
    """Inputs, and outputs where they are known.

    Attributes:
        images: uint8 (H, W, 3) each, of other sizes than the model's.
        texts: of several lengths.
        tensors: outputs by name, with one row for each input.
        captions: of the images, of the texts, or of the pairs of them; empty if the model writes none.
    """

    images: list[np.ndarray]
    texts: list[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)


def golden_inputs(image_size: int) -> Golden:
    """As many images of smooth noise as texts, wider and higher than they are in turn."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(len(TEXTS)):
        sides = (image_size + 8, round(image_size * 1.5))
        rows, columns = sides if number % 2 == 0 else sides[::-1]
        coarse = torch.from_numpy(rng.random((1, 3, 6, 7), dtype=np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (rows, columns), mode="bilinear")[0]
        images.append((smooth * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    return Golden(images, list(TEXTS))


@torch.inference_mode()
def golden_outputs(pipeline: Pipeline, golden: Golden) -> Golden:
    """The inputs with what a pipeline says: embeddings, logits, captions and their log probabilities."""
    tensors: dict[str, Tensor] = {}
    captions: list[str] = []
    if pipeline.aligned:
        tensors["image_embeds"] = pipeline.embed_images(golden.images)
        tensors["text_embeds"] = pipeline.embed_texts(golden.texts)
        if pipeline.logit_scale is not None:
            tensors["logits"] = pipeline.score(golden.images, golden.texts, kind="logit")
    if pipeline.writes:
        images = golden.images if "image" in pipeline.model.reads else None
        texts = golden.texts if "text" in pipeline.model.reads else None
        written = pipeline.caption_candidates(images, texts, max_length=TOKENS)
        captions = [candidates[0].text for candidates in written]
        tensors["log_probs"] = torch.tensor([[candidates[0].log_prob] for candidates in written])
    if not tensors and pipeline.model.image_encoder is not None:
        pooled = [output.pooled for output in pipeline.encode_images(golden.images, batch_size=len(golden.images))]
        tensors["pooled"] = torch.cat(pooled)
    return Golden(golden.images, golden.texts, {name: tensor.float() for name, tensor in tensors.items()}, captions)


def squares(pipeline: Pipeline, golden: Golden) -> Golden:
    """The golden inputs with images as the model sees them, uint8 (S, S, 3)."""
    images = [pipeline.transform(image).permute(1, 2, 0).contiguous().numpy() for image in golden.images]
    return replace(golden, images=images)


def golden_maps(pipeline: Pipeline, golden: Golden) -> Golden:
    """Squares with the maps of the image encoder."""
    return maps_of(pipeline.backbone(), squares(pipeline, golden))


@torch.inference_mode()
def maps_of(backbone: Backbone, golden: Golden) -> Golden:
    """Golden images of one size with the maps of a backbone."""
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in golden.images])
    maps = backbone.eval()(images)
    return replace(golden, tensors={f"map {name}": each.float() for name, each in maps.items()}, captions=[])


@dataclass(frozen=True)
class Difference:
    """How far an output is from the golden one.

    Attributes:
        name: of the output.
        largest: absolute difference.
        cosine: the smallest of a row with its golden row; of one number a row, that of all rows as one.
        allowed: the largest difference that is tolerated.
        least_cosine: the smallest cosine that is.
    """

    name: str
    largest: float
    cosine: float
    allowed: float
    least_cosine: float = -math.inf

    @property
    def passed(self) -> bool:
        return self.largest <= self.allowed and self.cosine >= self.least_cosine  # False for NaN

    def __str__(self) -> str:
        bound = f"{self.allowed:.1e}" if math.isfinite(self.allowed) else f"a cosine of {self.least_cosine} and more"
        verdict = "" if self.passed else f"; allowed is {bound}"
        return f"{self.name:<14} largest difference {self.largest:.1e}, cosine {self.cosine:.7f}{verdict}"


def compare(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float, least_cosine: float = -math.inf
) -> list[Difference]:
    """The differences of every expected output.

    Args:
        tolerance: of values up to 1; of larger ones it is multiplied by the largest.
        least_cosine: of every output with the expected one.
    """
    differences = []
    for name, tensor in expected.items():
        other = found[name]
        allowed = tolerance * max(1.0, tensor.abs().max().item())
        first = 1 if tensor[0].numel() > 1 else 0
        ours, theirs = tensor.double().flatten(first), other.double().flatten(first)
        cosine = torch.cosine_similarity(ours, theirs, dim=-1).min().item()
        differences.append(Difference(name, (tensor - other).abs().max().item(), cosine, allowed, least_cosine))
    return differences


def write_golden(golden: Golden, path: Path) -> None:
    """Write a safetensors file, see `read_golden`."""
    from safetensors.torch import save_file

    tensors = {f"image.{number}": torch.from_numpy(image) for number, image in enumerate(golden.images)}
    tensors |= {f"output.{name}": tensor.contiguous() for name, tensor in golden.tensors.items()}
    words = {"texts": golden.texts, "captions": golden.captions}
    save_file(tensors, path, metadata={name: json.dumps(value) for name, value in words.items()})


def read_golden(path: Path) -> Golden:
    """The content of a golden file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        words = {name: json.loads(value) for name, value in file.metadata().items()}
    images = sorted((name for name in tensors if name.startswith("image.")), key=lambda name: int(name[6:]))
    outputs = {name.removeprefix("output."): value for name, value in tensors.items() if name.startswith("output.")}
    return Golden([tensors[name].numpy() for name in images], words["texts"], outputs, words["captions"])
