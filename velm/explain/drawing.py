"""Maps over their image, as a sheet of tiles; low values are darkened."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from velm.explain.explanation import Explanation

SIDE = 192  # pixels of a tile
GAP = 12
LABEL = 24
COLUMNS = 6
VEIL = np.array([16.0, 18.0, 40.0])
THICKNESS = 0.8
PAPER, INK = (255, 255, 255), (23, 25, 31)


def veiled(image: np.ndarray, values: np.ndarray) -> Image.Image:
    """An image uint8 (H, W, 3) as a tile, dark where values (h, w) are lowest, unchanged where they are highest."""
    spread = float(values.max() - values.min())
    levels = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    size = (SIDE, SIDE)
    clear = Image.fromarray((255 * levels).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    dark = THICKNESS * (1 - np.asarray(clear, dtype=np.float32)[..., None] / 255)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray((pixels * (1 - dark) + VEIL * dark).round().astype(np.uint8))


def sheet(explanation: Explanation) -> Image.Image:
    """The text, then a tile of the image and one of each map, each with its name below."""
    tiles = [("image", Image.fromarray(explanation.image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))]
    if explanation.similarity is not None:
        tiles.append(("similarity", veiled(explanation.image, explanation.similarity)))
    if explanation.saliency is not None:
        tiles.append(("saliency", veiled(explanation.image, _smooth(np.abs(explanation.saliency)))))
    if explanation.attention is not None:
        words = zip(explanation.words, explanation.attention, strict=True)
        tiles += [(word, veiled(explanation.image, values)) for word, values in words]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    lines = textwrap.wrap(explanation.text, width=22 * columns) or [""]
    top = GAP + LABEL * len(lines)
    page = Image.new("RGB", (GAP + columns * (SIDE + GAP), top + rows * (SIDE + LABEL + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), "\n".join(lines), INK, font=ImageFont.load_default(size=17))
    for index, (name, tile) in enumerate(tiles):
        row, column = divmod(index, columns)
        left, upper = GAP + column * (SIDE + GAP), top + GAP + row * (SIDE + LABEL + GAP)
        page.paste(tile, (left, upper))
        pen.text((left, upper + SIDE + 3), name[:24], INK, font=ImageFont.load_default(size=15))
    return page


def _smooth(values: np.ndarray, part: int = 24) -> np.ndarray:
    """Mean over blocks of a few percent of the side: single pixels are too small to see."""
    height, width = values.shape
    small = (max(1, min(part, width)), max(1, min(part, height)))
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(small, Image.Resampling.BOX))
