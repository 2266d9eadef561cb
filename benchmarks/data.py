"""Pictures a second of the shipped loader beside open_clip's CSV pipeline, on the same pictures in one run.

    pip install --no-deps open_clip_torch webdataset braceexpand ftfy wcwidth && pip install pandas
    python benchmarks/data.py
    python benchmarks/data.py --root my_photographs --json

Both get the same JPEGs and sentences from a CSV each and make batches of random 224-pixel crops of 90 to 100% of the
area: open_clip by its `CsvDataset`, training transform and tokenizer, VELM by `VisionLanguageData`. open_clip's
batches are float32 and normalised, VELM's are bytes; "normalised" adds what `encode_image` does to them first, so that
both end with what an encoder computes on. The pipelines take turns (A B C A B C ...), an epoch each; medians over the
turns, after one that is not counted. Without workers there is one process with one thread: pictures a second a core.

The pictures are made: noise with the spectrum of photographs, 500 x 375 pixels of about 115 kB as Flickr's have, and
2,048 x 1,536 pixels of about 1.3 MB. Less detail is decoded faster and makes VELM's lead greater.

Expect two minutes, and about 1.9 times open_clip's pictures on 500 x 375 and 2.7 times on 3 megapixels; other work on
the machine moves the first by a tenth.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIZES = {"500 x 375": (500, 375, 1.0), "2,048 x 1,536": (2048, 1536, 1.2)}  # pixels, exponent of the spectrum
WORDS = ("a", "two", "dog", "child", "man", "red", "ball", "runs", "sits", "through", "on", "snow", "small", "near")
CROP = (0.9, 1.0)  # open_clip's default
SIZE = 224
BATCH = 32
WORKERS = {"one core": 0, "two workers": 2}
THEIRS, OURS, NORMALISED = "open_clip", "VELM", "VELM, normalised"


def made_picture(rng: np.random.Generator, width: int, height: int, exponent: float) -> Image.Image:
    """Noise whose amplitudes fall with frequency as those of photographs do; its colours vary less than its light."""
    falling = np.maximum(1, np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width))
    noise = np.fft.rfft2(rng.standard_normal((3, height, width), np.float32)) / falling**exponent
    light, warm, cool = (plane / plane.std() for plane in np.fft.irfft2(noise, s=(height, width)))
    rgb = np.stack([light + 0.3 * warm, light - 0.15 * (warm + cool), light + 0.3 * cool], -1)
    return Image.fromarray((118 + 50 * rgb).clip(0, 255).astype(np.uint8))


def make_corpus(folder: Path, count: int, width: int, height: int, exponent: float) -> list[Path]:
    """The same JPEGs every time, of quality 90."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for path in paths:
        made_picture(rng, width, height, exponent).save(path, quality=90)
    return paths


def write_tables(folder: Path, pictures: list[Path]) -> None:
    """ours.csv and theirs.csv: a sentence of twelve words for each picture."""
    rng = np.random.default_rng(1)
    rows = [(str(picture.absolute()), " ".join(rng.choice(WORDS, 12))) for picture in pictures]
    for name, columns, separator in (("ours", ("image_path", "text"), ","), ("theirs", ("filepath", "title"), "\t")):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=separator).writerows([columns, *rows])


def their_loader(folder: Path, batch_size: int, workers: int) -> Iterable[Any]:
    """As open_clip's `get_csv_dataset` makes it, but that its workers stay, as VELM's do."""
    try:
        from open_clip import SimpleTokenizer, image_transform
        from open_clip_train.data import CsvDataset
    except ImportError as error:
        sys.exit(
            f"The comparison needs open_clip, and {error.name!r} is missing: pip install --no-deps open_clip_torch "
            f"webdataset braceexpand ftfy wcwidth && pip install pandas"
        )
    transform = image_transform(SIZE, is_train=True)
    table = str(folder / "theirs.csv")
    dataset = CsvDataset(table, transform, img_key="filepath", caption_key="title", tokenizer=SimpleTokenizer())
    return torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(), drop_last=True,
    )  # fmt: skip


def our_loader(folder: Path, batch_size: int, workers: int) -> Iterable[Any]:
    from velm.training.datamodule import Augmentation, VisionLanguageData

    table = {"name": "csv", "path": str(folder / "ours.csv"), "split_column": None, "image_id_column": None}
    data = VisionLanguageData(
        dataset={**table, "allow_outside": True}, tokenizer="bpe", image_size=SIZE, batch_size=batch_size,
        augment=Augmentation(crop_scale=CROP), num_workers=workers,
    )  # fmt: skip
    return data.train_dataloader()


def normaliser() -> Callable[[torch.Tensor], torch.Tensor]:
    """The shipped `encode_image` with an encoder that does nothing."""
    from velm.model import VisionLanguageModel

    idle = torch.nn.Identity()
    idle.image_mean, idle.image_std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    return VisionLanguageModel(image_encoder=idle, text_encoder=None).encode_image


def pipelines(folder: Path, batch_size: int, workers: int) -> dict[str, Callable[[], int]]:
    """Functions that go through an epoch and return the number of its pictures, by name."""
    theirs, ours = their_loader(folder, batch_size, workers), our_loader(folder, batch_size, workers)
    encode_image = normaliser()
    return {
        THEIRS: lambda: sum(len(images) for images, _ in theirs),
        OURS: lambda: sum(len(batch.images) for batch in ours),
        NORMALISED: lambda: sum(len(encode_image(batch.images)) for batch in ours),
    }


def speeds(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Pictures a second of each run, `repeats` of them, taking turns after one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            pictures = run()
            if turn:
                found[name].append(pictures / (time.perf_counter() - start))
    return found


def summary(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each: median, slowest, fastest, and the median's ratio to the first one's."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    first = next(iter(medians.values()))
    return {
        name: {"median": medians[name], "min": min(values), "max": max(values), "ratio": medians[name] / first}
        for name, values in found.items()
    }


def measure(folder: Path, pictures: list[Path], repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """A summary without workers and one with two."""
    write_tables(folder, pictures)
    batch_size = min(BATCH, max(1, len(pictures) // 4))
    return {name: summary(speeds(pipelines(folder, batch_size, workers), repeats)) for name, workers in WORKERS.items()}


def printed(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """The table."""
    lines = []
    for pictures, by_workers in results.items():
        for workers, rows in by_workers.items():
            lines.append(f"{pictures}, {workers}")
            for name, row in rows.items():
                span = f"({row['min']:.0f} to {row['max']:.0f})"
                lines.append(f"  {name:<18} {row['median']:6.0f} pictures/s {span:<16} {row['ratio']:.2f} x")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pictures a second of VELM's loader and open_clip's, in one run.")
    parser.add_argument("--pictures", type=int, default=256, help="500 x 375 ones; an eighth as many of 3 megapixels")
    parser.add_argument("--repeats", type=int, default=7, help="epochs of each pipeline")
    parser.add_argument("--root", type=Path, help="folder of JPEGs to take, as they are, in place of made ones")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        if options.root is not None:
            pictures = sorted(options.root.rglob("*.jp*g"))[: options.pictures]
            if not pictures:
                sys.exit(f"There is no JPEG under {str(options.root)!r}.")
            results[str(options.root)] = measure(Path(temporary), pictures, options.repeats)
        else:
            for name, (width, height, exponent) in SIZES.items():
                count = options.pictures if width < 1000 else math.ceil(options.pictures / 8)
                pictures = make_corpus(Path(temporary), count, width, height, exponent)
                results[name] = measure(Path(temporary), pictures, options.repeats)
    print(json.dumps(results, indent=2) if options.json else printed(results))


if __name__ == "__main__":
    main()
