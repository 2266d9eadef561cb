"""Synthetic dataset: scenes of coloured shapes, drawn on access, with every correct description."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from velm.data.base import Dataset, Record, Records
from velm.data.synthetic import chinese
from velm.data.synthetic.scenes import COLOURS, Scene, Scenes, describe
from velm.errors import MissingSplitError

__all__ = ["Drawings", "Shapes", "draw", "object_mask"]

RGB = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 225),
    "yellow": (240, 205, 20),
    "purple": (155, 45, 185),
    "cyan": (60, 205, 225),
    "black": (30, 30, 30),
}
DIAMETER = {"small": (0.36, 0.44), "large": (0.75, 0.84)}  # smallest and largest, as a fraction of the space per object
SUPERSAMPLE = 8  # drawn this many times larger, then averaged, for smooth edges

Box = tuple[int, int, int, int]
DESCRIBE = {"en": describe, "zh": chinese.describe}
"""By language: a scene to every description of it that counts as correct."""


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape in the unit square, y downwards."""
    if shape == "square":
        return [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)]
    if shape == "triangle":
        return [(0.5, 0.02), (1.0, 0.96), (0.0, 0.96)]
    if shape == "cross":
        a, b = 0.33, 0.67
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    corners = []  # a star of five points
    for k in range(10):
        radius, angle = (0.55, 0.22)[k % 2], math.pi * (k / 5 - 0.5)
        corners.append((0.5 + radius * math.cos(angle), 0.55 + radius * math.sin(angle)))
    return corners


@lru_cache(maxsize=4096)
def _coverage(shape: str, diameter: int) -> np.ndarray:
    """Fraction of each pixel that a shape covers: float32 (diameter, diameter, 1) in [0, 1]."""
    side = diameter * SUPERSAMPLE
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    if shape in ("circle", "ring"):
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            inner = round(0.27 * side)
            pen.ellipse((inner, inner, side - 1 - inner, side - 1 - inner), fill=0)
    else:
        pen.polygon([(x * (side - 1), y * (side - 1)) for x, y in _outline(shape)], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLE), dtype=np.float32)[..., None] / 255


def _place_objects(scene: Scene, image_size: int, rng: random.Random) -> list[Box]:
    """A box per object; neighbours are at least twice as far apart along the scene's axis as across it."""
    space = image_size / len(scene.things)
    along, diameters = [], []
    for i, thing in enumerate(scene.things):
        least, most = (round(part * min(space, image_size / 2)) for part in DIAMETER[thing.size])
        diameters.append(rng.randint(least, most))
        along.append(round(space * i + 1 + rng.random() * (space - 2 - diameters[-1])))
    centres = [start + d / 2 for start, d in zip(along, diameters, strict=True)]
    gap = min((b - a for a, b in itertools.pairwise(centres)), default=0.0)
    wobble, radius = max(gap / 4 - 0.5, 0.0), max(diameters) / 2  # half a pixel for the rounding
    middle = radius + wobble + rng.random() * (image_size - 2 * (radius + wobble))
    boxes = []
    for start, d in zip(along, diameters, strict=True):
        across = min(max(round(middle + rng.uniform(-wobble, wobble) - d / 2), 0), image_size - d)
        x, y = (across, start) if scene.axis == "vertical" else (start, across)
        boxes.append((x, y, x + d, y + d))
    return boxes


def draw(scene: Scene, image_size: int, rng: random.Random) -> tuple[np.ndarray, list[Box]]:
    """Draw a scene with random positions, sizes, colours and background.

    Returns:
        uint8 (image_size, image_size, 3), and a box (left, top, right, bottom; pixels) per object.
    """
    image = np.full((image_size, image_size, 3), rng.randint(215, 250), dtype=np.uint8)
    boxes = _place_objects(scene, image_size, rng)
    for thing, (left, top, right, bottom) in zip(scene.things, boxes, strict=True):
        colour = np.array([min(max(c + rng.randint(-12, 12), 0), 255) for c in RGB[thing.colour]], np.float32)
        patch = image[top:bottom, left:right]
        patch[:] = patch + _coverage(thing.shape, right - left) * (colour - patch)
    return image, boxes


def object_mask(thing: Mapping[str, Any], image_size: int) -> np.ndarray:
    """The pixels of which an object covers half or more: bool (image_size, image_size).

    Args:
        thing: of `metadata["objects"]` of a record, with its `shape` and `box`; objects never overlap.
    """
    mask = np.zeros((image_size, image_size), dtype=bool)
    left, top, right, bottom = thing["box"]
    mask[top:bottom, left:right] = _coverage(thing["shape"], right - left)[..., 0] >= 0.5
    return mask


class Drawings(Records):
    """Records drawn on access; an index always gives the same image."""

    def __init__(
        self, name: str, scenes: Scenes, ranks: np.ndarray, size: int, image_size: int, seed: int, language: str = "en"
    ) -> None:
        self.name, self.scenes, self.ranks = name, scenes, ranks
        self.size, self.image_size, self.seed = size, image_size, seed
        self.describe = DESCRIBE[language]

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int) -> tuple[str, Scene]:
        """The image id and the scene of a record, without drawing it."""
        rank = int(self.ranks[index % len(self.ranks)])
        return f"{'heldout' if self.scenes.held_out else 'scene'}-{rank}", self.scenes[rank]

    def record(self, index: int) -> Record:
        identity, scene = self.scene(index)
        rng = random.Random(f"{self.seed}/{self.name}/{index}")
        image, boxes = draw(scene, self.image_size, rng)
        objects = [thing._asdict() | {"box": box} for thing, box in zip(scene.things, boxes, strict=True)]
        return Record(identity, image, self.describe(scene), metadata={"objects": objects, "axis": scene.axis})

    def text_only(self, index: int) -> Record:
        """As `record`, but nothing is drawn, so no object has a box."""
        identity, scene = self.scene(index)
        objects = [thing._asdict() for thing in scene.things]
        return Record(identity, None, self.describe(scene), metadata={"objects": objects, "axis": scene.axis})


class Shapes(Dataset):
    """Scenes of coloured shapes: "a small red circle left of a large blue square".

    No two images of a split show the same scene (the same objects in the same order along the same axis), so a
    description has one correct image in a gallery, and splits share no scene. A training split larger than the number
    of scenes repeats them with other drawings; `image_id` names the scene, so two drawings of it are a match and never
    a negative. The split `heldout` combines colours and shapes that the other splits never combine.

    Args:
        train_size: images to train on.
        val_size: images in `val`.
        test_size: images in `test`.
        heldout_size: images in `heldout`, each with one unseen combination of colour and shape.
        objects: per scene, 1 to 3; three need an image_size of 96 or more.
        image_size: side of an image, pixels, at least 32.
        seed: of images and splits.
        language: of the descriptions: 'en', or 'zh' for Chinese (`velm.data.synthetic.chinese`).
        colours: of the objects, e.g. [red, green, blue]; None: all seven.
    """

    record_type: type[Drawings] = Drawings
    languages: tuple[str, ...] = tuple(DESCRIBE)

    def __init__(
        self,
        *,
        train_size: int = 8000,
        val_size: int = 500,
        test_size: int = 500,
        heldout_size: int = 500,
        objects: int = 2,
        image_size: int = 64,
        seed: int = 0,
        language: Literal["en", "zh"] = "en",
        colours: list[str] | None = None,
    ) -> None:
        if language not in self.languages:
            raise ValueError(f"language {language!r}: {type(self).__name__} is written in {', '.join(self.languages)}.")
        if not 1 <= objects <= 3:
            raise ValueError(f"objects {objects} is not between 1 and 3.")
        if image_size < 32:
            raise ValueError(f"image_size {image_size} pixels is too small to tell the shapes apart: take 32 or more.")
        colours = list(COLOURS) if colours is None else list(dict.fromkeys(colours))
        if not colours or not set(colours) <= set(COLOURS):
            raise ValueError(f"colours {', '.join(colours) or '[]'}: choose one or more of {', '.join(COLOURS)}.")
        sizes = {"train": train_size, "val": val_size, "test": test_size, "heldout": heldout_size}
        for name, size in sizes.items():
            if size < 0:
                raise ValueError(f"{name}_size {size} is negative.")
        self.sizes = sizes
        self.image_size, self.seed, self.language = image_size, seed, language
        self.seen, self.unseen = Scenes(objects, colours=colours), Scenes(objects, held_out=True, colours=colours)
        if val_size + test_size >= len(self.seen):
            raise ValueError(
                f"val_size {val_size} and test_size {test_size} leave no scene to train on: there are "
                f"{len(self.seen)} scenes of {objects} object(s). Lower them, or take more objects or colours."
            )
        if heldout_size > len(self.unseen):
            raise ValueError(f"heldout_size {heldout_size} is more than the {len(self.unseen)} scenes there are.")

    @cached_property
    def _ranks(self) -> dict[str, np.ndarray]:
        shuffled = np.random.default_rng(self.seed).permutation(len(self.seen))
        test, val = self.sizes["test"], self.sizes["test"] + self.sizes["val"]
        return {
            "test": shuffled[:test],
            "val": shuffled[test:val],
            "train": shuffled[val:],
            "heldout": np.random.default_rng(self.seed).permutation(len(self.unseen)),
        }

    def split(self, name: str) -> Drawings:
        if not self.sizes.get(name):
            filled = ", ".join(f"{split} ({size})" for split, size in self.sizes.items() if size)
            what = "is empty" if name in self.sizes else "does not exist"
            raise MissingSplitError(f"The split '{name}' of shapes {what}. Splits there are: {filled}.")
        scenes = self.unseen if name == "heldout" else self.seen
        return self.record_type(
            name, scenes, self._ranks[name], self.sizes[name], self.image_size, self.seed, self.language
        )
