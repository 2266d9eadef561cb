"""Images and texts prepared for an imported model, beside the processors of transformers and open_clip.

    python benchmarks/preprocessing.py --images FOLDER --captions ../shared/data/flickr8k/captions.csv

Differences are of pixels in steps of 1/255, over the squares that the models read: the largest, and the mean over all
pixels of all images. Seconds are the medians of five rounds by turns, on one thread, files read from the page cache.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from velm.data.images.transforms import EvalTransform
from velm.data.text.clip import CLIPTokenizer

SHARED = {"image_size": 224, "interpolation": "bicubic", "decode": "full"}
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, default=200, help="photographs, evenly spaced among those of the folder")
    parser.add_argument("--mosaics", action="store_true", help="of photographs side by side, of 200 to 1,000 pixels")
    parser.add_argument("--captions", type=Path, help="csv with a column text")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        files = [files[i] for i in np.linspace(0, len(files) - 1, min(args.count, len(files))).astype(int)]
        report(mosaics(files, Path(folder)) if args.mosaics else files)
    if args.captions is not None:
        tokens(args.captions)


def report(files: list[Path]) -> None:
    """Print sizes, differences and speed."""
    sizes = {Image.open(file).size for file in files}
    print(f"{len(files)} photographs of {len(sizes)} sizes, {min(map(min, sizes))} to {max(map(max, sizes))} pixels")
    for name, ours, theirs in pairs():
        compare(name, ours, theirs, files)
    ours, theirs = timed()
    rates = seconds([ours, theirs], files)
    print(f"images a second: velm {len(files) / rates[0]:.0f}, open_clip {len(files) / rates[1]:.0f}, "
          f"ratio of medians {rates[1] / rates[0]:.2f}")  # fmt: skip


def mosaics(files: list[Path], folder: Path) -> list[Path]:
    """As many JPEGs of random sizes, made of several photographs each."""
    rng, made = np.random.default_rng(0), []
    for number in range(len(files)):
        width, height = rng.integers(200, 1001, 2).tolist()
        image = Image.new("RGB", (width, height))
        for left in range(0, width, 144):
            for top in range(0, height, 144):
                image.paste(Image.open(files[rng.integers(len(files))]).convert("RGB"), (left, top))
        made.append(folder / f"{number}.jpg")
        image.save(made[-1], quality=92)
    return made


def pairs() -> list[tuple[str, EvalTransform, Callable[[str], torch.Tensor]]]:
    """VELM's transform and the original's, which returns uint8 (3, 224, 224)."""
    from transformers import CLIPImageProcessor, SiglipImageProcessor

    shortest = EvalTransform(**SHARED, resize="shortest")
    squash = EvalTransform(**SHARED, resize="squash")
    rounded = EvalTransform(**SHARED, resize="shortest", crop_rounding="even")
    plain = {"do_rescale": False, "do_normalize": False}
    clip, siglip = CLIPImageProcessor(**plain), SiglipImageProcessor(**plain, size={"height": 224, "width": 224})
    return [
        ("CLIP, transformers", shortest, processor(clip)),
        ("CLIP, transformers' PIL backend", shortest, processor(pil_processor(clip))),
        ("SigLIP, transformers", squash, processor(siglip)),
        ("CLIP, open_clip", rounded, open_clip_transform("shortest")),
        ("SigLIP, open_clip", squash, open_clip_transform("squash")),
    ]


def processor(made: Any) -> Callable[[str], torch.Tensor]:
    def run(file: str) -> torch.Tensor:
        pixels = made(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels.round().clamp(0, 255).to(torch.uint8)

    return run


def pil_processor(made: Any) -> Any:
    """The same processor with transformers' PIL backend."""
    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        return AutoImageProcessor.from_pretrained(folder, backend="pil")


def open_clip_transform(mode: str, normalise: bool = False) -> Callable[[str], torch.Tensor]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    zero = {} if normalise else {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    transform = image_transform_v2(PreprocessCfg(size=224, interpolation="bicubic", resize_mode=mode, **zero), False)

    def run(file: str) -> torch.Tensor:
        pixels = transform(Image.open(file))
        return pixels if normalise else (pixels * 255).round().to(torch.uint8)

    return run


def compare(name: str, ours: EvalTransform, theirs: Callable[[str], torch.Tensor], files: list[Path]) -> None:
    largest, total = 0, 0.0
    for file in files:
        difference = (ours(str(file)).int() - theirs(str(file)).int()).abs()
        largest, total = max(largest, int(difference.max())), total + float(difference.float().mean())
    print(f"{name:<34} largest {largest}/255, mean {total / len(files):.4f}/255")


def timed() -> tuple[Callable[[str], Any], Callable[[str], Any]]:
    """Both sides as they prepare an image in a loader: open_clip normalises on the CPU, VELM on the device."""
    return EvalTransform(**SHARED, resize="shortest", crop_rounding="even"), open_clip_transform("shortest", True)


def seconds(functions: list[Callable[[str], Any]], files: list[Path]) -> list[float]:
    """Median seconds of each function over all files; they take turns."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, own in zip(functions, taken, strict=True):
            begun = time.perf_counter()
            for file in files:
                function(str(file))
            own.append(time.perf_counter() - begun)
    return [statistics.median(own) for own in taken]


def tokens(path: Path) -> None:
    """CLIP's byte pairs of all captions, beside open_clip's tokenizer."""
    import open_clip

    ours, theirs = CLIPTokenizer(), open_clip.SimpleTokenizer()
    with open(path, encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    different = sum(ours.to_ids(text) != theirs.encode(text) for text in texts)
    print(f"{len(texts):,} captions, {different} of them cut into other tokens than open_clip's")


if __name__ == "__main__":
    main()
