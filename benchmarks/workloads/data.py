"""Images per second of VELM's loader and of open_clip's CSV pipeline, on the same images.

Both read the same JPEGs and captions from a CSV and make batches of random 224-pixel crops of 90 to 100% of the area:
open_clip by its `CsvDataset`, training transform and tokenizer, VELM by `VisionLanguageData`. The batches of open_clip
are float32 and normalised. Those of VELM are uint8, which its model normalises on the device; `velm_normalised` also
normalises them on the same core. A step is an epoch. Without workers there is one process with one thread: images per
second and core.

The images are synthetic: noise with the spectrum of photographs, 500 x 375 pixels of about 115 kB as in Flickr's, and
2,048 x 1,536 pixels of about 1.3 MB. Images with less detail decode faster, which increases VELM's lead.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload, require

SIZES = {"500 x 375": (500, 375, 1.0), "2,048 x 1,536": (2048, 1536, 1.2)}  # pixels, exponent of the spectrum
WORDS = ("a", "two", "dog", "child", "man", "red", "ball", "runs", "sits", "through", "on", "snow", "small", "near")
CROP = (0.9, 1.0)  # open_clip's default
SIZE = 224
BATCH = 32
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's
TOLERANCE = 0.05
"""By how much mean and deviation of the pixels may differ: crops are random, and open_clip resizes bicubically."""
COUNTS = {"500 x 375": 256, "2,048 x 1,536": 32}


def made_image(rng: np.random.Generator, width: int, height: int, exponent: float) -> Image.Image:
    """Noise with the spectrum of photographs; its colours vary less than its brightness."""
    falling = np.maximum(1, np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width))
    noise = np.fft.rfft2(rng.standard_normal((3, height, width), np.float32)) / falling**exponent
    light, warm, cool = (plane / plane.std() for plane in np.fft.irfft2(noise, s=(height, width)))
    rgb = np.stack([light + 0.3 * warm, light - 0.15 * (warm + cool), light + 0.3 * cool], -1)
    return Image.fromarray((118 + 50 * rgb).clip(0, 255).astype(np.uint8))


def make_corpus(folder: Path, count: int, width: int, height: int, exponent: float) -> list[Path]:
    """Deterministic JPEGs of quality 90."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for path in paths:
        made_image(rng, width, height, exponent).save(path, quality=90)
    return paths


def write_tables(folder: Path, images: list[Path]) -> None:
    """Write ours.csv and theirs.csv: a caption of twelve words per image."""
    rng = np.random.default_rng(1)
    rows = [(str(image.absolute()), " ".join(rng.choice(WORDS, 12))) for image in images]
    for name, columns, separator in (("ours", ("image_path", "text"), ","), ("theirs", ("filepath", "title"), "\t")):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=separator).writerows([columns, *rows])


def their_loader(folder: Path, batch_size: int, workers: int) -> Iterable[Any]:
    """The loader as `get_csv_dataset` of open_clip builds it, but with persistent workers, like VELM's."""
    for module in ("pandas", "webdataset", "open_clip"):
        require(module)
    from open_clip import SimpleTokenizer, image_transform
    from open_clip_train.data import CsvDataset

    transform = image_transform(SIZE, is_train=True)
    table = str(folder / "theirs.csv")
    dataset = CsvDataset(table, transform, img_key="filepath", caption_key="title", tokenizer=SimpleTokenizer())
    return torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(), drop_last=True,
    )  # fmt: skip


def our_loader(folder: Path, batch_size: int, workers: int) -> Iterable[Any]:
    from velm.training.config import Augmentation
    from velm.training.data import VisionLanguageData

    table = {"name": "csv", "path": str(folder / "ours.csv"), "split_column": None, "image_id_column": None}
    data = VisionLanguageData(
        dataset={**table, "allow_outside": True}, tokenizer="bpe", image_size=SIZE, batch_size=batch_size,
        augment=Augmentation(crop_scale=CROP), num_workers=workers,
    )  # fmt: skip
    return data.train_dataloader()


def normaliser() -> Callable[[torch.Tensor], torch.Tensor]:
    """VELM's `encode_image` with an encoder that does nothing."""
    from velm.model import VisionLanguageModel

    idle = torch.nn.Identity()
    idle.image_mean, idle.image_std = MEAN, STD
    return VisionLanguageModel(image_encoder=idle, text_encoder=None).encode_image


def corpus(size: str) -> Path:
    """Folder of the images and tables of this size; created once per machine, in its temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"velm_benchmark_data_{'_'.join(str(n) for n in SIZES[size])}_{os.getuid()}"
    if not (folder / "theirs.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_tables(folder, make_corpus(folder, COUNTS[size], *SIZES[size]))
    return folder


def epoch(system: str, size: str, workers: int) -> Callable[[], int]:
    """Iterate over an epoch of one side and return its number of images."""
    folder, batch_size = corpus(size), min(BATCH, COUNTS[size] // 4)
    if system == "open_clip":
        theirs = their_loader(folder, batch_size, workers)
        return lambda: sum(len(images) for images, _ in theirs)
    loader, encode_image = our_loader(folder, batch_size, workers), normaliser()
    if system == OURS:
        return lambda: sum(len(batch.images) for batch in loader)
    return lambda: sum(len(encode_image(batch.images)) for batch in loader)


def ready(system: str, size: str, workers: int, settings: Settings) -> Run:
    torch.set_num_threads(1)
    return Run(epoch(system, size, workers), warm=1, steps=3)


def prove(size: str, settings: Settings) -> list[Agreement]:
    """Equal numbers of images of equal shape, with similar statistics of the normalised pixels (crops are random)."""
    folder = corpus(size)
    theirs = next(iter(their_loader(folder, COUNTS[size], 0)))[0]
    batch = next(iter(our_loader(folder, COUNTS[size], 0)))
    mine = normaliser()(batch.images)
    assert mine.shape == theirs.shape, (mine.shape, theirs.shape)
    assert mine.dtype == theirs.dtype == torch.float32
    lines = [Agreement("an epoch's pixels", str(tuple(mine.shape)), str(tuple(theirs.shape)), "float32, normalised")]
    for what, ours, other in (("mean", mine.mean(), theirs.mean()), ("deviation", mine.std(), theirs.std())):
        assert abs(float(ours - other)) < TOLERANCE, (what, ours, other)
        lines.append(Agreement(f"{what} of the normalised pixels", float(ours), float(other)))
    return lines


def workload(name: str, size: str, workers: int) -> Workload:
    return Workload(
        name=name,
        title=f"JPEG of {size} to batches of 224-px crops, {'two workers' if workers else 'one core'}, from a CSV",
        unit="images",
        systems={system: partial(ready, system, size, workers) for system in (OURS, "velm_normalised", "open_clip")},
        against={"open_clip": OURS},
        prove=partial(prove, size),
        repeats=3,
        profiled=None,
        notes=("open_clip's batches are normalised float32, VELM's bytes, which its model normalises on the device.",),
    )


WORKLOADS = [
    workload("data", "500 x 375", 0),
    workload("data_workers", "500 x 375", 2),
    workload("data_3mpx", "2,048 x 1,536", 0),
]
