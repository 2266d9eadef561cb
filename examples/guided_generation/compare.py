"""How often an image shows what its prompt asked for: unguided, guided and best of n, judged by another model."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

import velm
from examples.guided_generation.diffusion import Network, ddim, denoise
from examples.guided_generation.guide import best_of, guided, similarity, to_images

__all__ = ["Painter", "Result", "compare", "page", "sheet"]


@dataclass(frozen=True)
class Painter:
    """Images of prompts.

    Args:
        network: predicts images, see `unet.py`.
        guide: steers and chooses.
        image_size: side of an image in pixels.
        steps, repeats: see `ddim`.
        strength: see `guided`.
        seed: of the noise; candidate k of prompt i starts at the same noise, guided or not.
    """

    network: Network
    guide: velm.Pipeline
    image_size: int
    steps: int = 12
    repeats: int = 3
    strength: float = 1.0
    seed: int = 0

    def paint(self, prompts: Sequence[str], *, guidance: bool, candidate: int = 0) -> list[np.ndarray]:
        """One image, uint8 (H, W, 3), of each prompt; without guidance it knows nothing of the prompt."""
        images = []
        for start in range(0, len(prompts), 50):
            batch = prompts[start : start + 50]
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * candidate + start)
            noise = torch.randn(len(batch), 3, self.image_size, self.image_size, generator=generator)
            if guidance:
                see = guided(self.network, similarity(self.guide, batch), self.strength)
                pixels = ddim(see, noise, steps=self.steps, repeats=self.repeats, generator=generator)
            else:
                pixels = ddim(partial(denoise, self.network), noise, steps=self.steps)
            images += to_images(pixels)
        return images

    def best(self, prompts: Sequence[str], *, guidance: bool, n: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The first image of each prompt, and the best of `n`."""
        candidates = [self.paint(prompts, guidance=guidance, candidate=k) for k in range(n)]
        choices = zip(prompts, zip(*candidates, strict=True), strict=True)
        return candidates[0], [best_of(self.guide, images, prompt) for prompt, images in choices]


@dataclass(frozen=True)
class Result:
    """Images of one method, one per prompt.

    Args:
        images: uint8 (H, W, 3).
        captions: of the judge.
        shown: whether the caption is one of the right descriptions of what was asked, word for word.
        seconds: per image, of one core.
    """

    images: list[np.ndarray]
    captions: list[str]
    shown: list[bool]
    seconds: float

    def figures(self) -> dict[str, float]:
        return {"shown": sum(self.shown) / len(self.shown), "seconds": self.seconds}


def compare(painter: Painter, judge: velm.Pipeline, records: Sequence[velm.Record], n: int = 8) -> dict[str, Result]:
    """Results by method; 'drawn', of the dataset's own images, is the most that the judge can give.

    Args:
        painter: of the images.
        judge: captions them greedily; another model than the painter's guide, which one could please with an image
            that only it reads as the prompt.
        records: whose first caption is the prompt, and any of whose captions is right.
        n: candidates of best-of-n.
    """

    def judged(images: list[np.ndarray], seconds: float) -> Result:
        captions = judge.caption(images)
        shown = [caption in record.texts for caption, record in zip(captions, records, strict=True)]
        return Result(images, captions, shown, seconds)

    prompts, results = [record.texts[0] for record in records], {}
    for name, guidance in (("unguided", False), ("guided", True)):
        start = time.process_time()
        first, best = painter.best(prompts, guidance=guidance, n=n)
        seconds = (time.process_time() - start) / len(prompts)
        results[name] = judged(first, seconds / n)
        results[f"{name}, best of {n}"] = judged(best, seconds)
    return results | {"drawn": judged([record.image for record in records], 0.0)}


def sheet(results: dict[str, Result], count: int = 10) -> Image.Image:
    """The images of the first `count` prompts side by side, a row per method."""
    rows = [np.concatenate(result.images[:count], axis=1) for result in results.values()]
    return Image.fromarray(np.concatenate(rows, axis=0))


def page(records: Sequence[velm.Record], results: dict[str, Result]) -> str:
    """An HTML page with a row per prompt and a column per method; a green frame: the judge reads the prompt."""
    head = "".join(f"<th>{name}<br>{result.figures()['shown']:.1%}</th>" for name, result in results.items())
    rows = []
    for i, record in enumerate(records):
        cells = "".join(_cell(r.images[i], r.captions[i], r.shown[i]) for r in results.values())
        rows.append(f"<tr><td>{html.escape(record.texts[0])}</td>{cells}</tr>")
    style = "td, th {max-width: 11em; font: 13px sans-serif; vertical-align: top} img {width: 128px; border: 3px solid}"
    return (
        f"<!doctype html><meta charset='utf-8'><title>Guided generation</title><style>{style}</style>"
        f"<table><tr><th>prompt</th>{head}</tr>{''.join(rows)}</table>\n"
    )


def _cell(image: np.ndarray, caption: str, shown: bool) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png")
    source = base64.b64encode(file.getvalue()).decode()
    colour = "green" if shown else "lightgrey"
    return (
        f"<td><img style='border-color: {colour}' src='data:image/png;base64,{source}'><br>{html.escape(caption)}</td>"
    )
