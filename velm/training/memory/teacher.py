"""Distillation: a teacher embeds every image and every text of the data once, before the first step.

The teacher is any pipeline. It sees each image as it is, without the student's augmentation, through its own transform,
and each text through its own tokenizer. Its embeddings are cached on disk beside those of `data.cache_features`, named
by a hash of its weights, its transform or tokenizer, and the content; an epoch costs no pass of the teacher, which is
freed before training starts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from velm.data.feature_cache.key import FORMAT, cache_key, fingerprint_images, weights_digest
from velm.data.feature_cache.store import Readable, write_features
from velm.data.feature_cache.teacher import TeacherReader
from velm.data.feature_cache.texts import DistinctTexts, write_texts
from velm.errors import CheckpointError, ConfigError, InputError, MissingSplitError
from velm.losses.base import Loss
from velm.losses.weighted import WeightedLosses
from velm.outputs import EncoderOutput, TeacherEmbeddings
from velm.pipeline import Pipeline, load
from velm.training.memory.feature_cache import CHECKED, TOLERANCE, cache_folder
from velm.util import progress_bar
from velm.version import __version__

__all__ = ["announce_teacher", "prepare_teacher"]

OPTION = "cache of the distillation loss"


def announce_teacher(losses: WeightedLosses, data: Any) -> None:
    """Tell a data module whether its samples come with the embeddings of a teacher: that of the losses."""
    if hasattr(data, "distils"):
        data.distils = losses.teacher_loss is not None


def prepare_teacher(trainer: lightning.Trainer, losses: WeightedLosses, embed_dim: int) -> None:
    """Open the caches of the training and validation splits; embed what is missing.

    One process per machine embeds, the others wait.

    Args:
        trainer: of the fit, with its data module.
        losses: of the student.
        embed_dim: E of the student.

    Raises:
        ConfigError: the teacher cannot be loaded, aligns nothing, or does not fit the loss.
    """
    data, loss = getattr(trainer, "datamodule", None), losses.teacher_loss
    if loss is None or not getattr(data, "distils", False):
        return
    readers: dict[str, TeacherReader] = {}
    for split in ("train", "val") if trainer.limit_val_batches else ("train",):
        try:
            readers[split] = data.teacher(split)  # type: ignore[union-attr]
        except MissingSplitError:
            continue
    folders: dict[str, tuple[Path, Path]] = {}
    scale: float | None = None
    if trainer.local_rank == 0:
        with torch.random.fork_rng(devices=[]):  # building a model draws its initial weights
            teacher = _load(loss, trainer.strategy.root_device, embed_dim)
            scale = teacher.logit_scale
            for split, reader in readers.items():
                folders[split] = _SplitCache(trainer, teacher, loss, split, reader, data).make()
    folders, scale = trainer.strategy.broadcast((folders, scale))
    trainer.strategy.barrier("teacher")
    for split, reader in readers.items():
        reader.open(*folders[split], scale)


def _load(loss: Loss, device: torch.device, embed_dim: int) -> Pipeline:
    try:
        teacher = load(str(loss.teacher), device=device)
        teacher.require_alignment()
        embeds = teacher.embed_texts(["a"])
        if not embeds.isfinite().all():
            raise CheckpointError("It computes NaN or inf; take another checkpoint of its run.")
        loss.check_teacher(TeacherEmbeddings(embeds, embeds, teacher.logit_scale), embed_dim)
    except InputError as error:
        raise ConfigError(f"The teacher {loss.teacher}: {error}") from error
    teacher.model.requires_grad_(False)
    return teacher


@dataclass
class _SplitCache:
    """The two caches of one split."""

    trainer: lightning.Trainer
    teacher: Pipeline
    loss: Loss
    split: str
    reader: TeacherReader
    data: Any

    def make(self) -> tuple[Path, Path]:
        """The folders of images and texts, written unless they exist and agree with the teacher."""
        root = cache_folder(getattr(self.loss, "cache", None) or True)
        model, versions = self.teacher.model, [__version__, torch.__version__]
        about = {"format": FORMAT, "teacher": weights_digest(model), "model": _hash(repr(model)), "versions": versions}
        return self._make_images(root, about), self._make_texts(root, about)

    def _make_images(self, root: Path, about: dict[str, Any]) -> Path:
        images = self.reader.images.images
        fingerprint = fingerprint_images(image for _, image in images)
        about = {**about, "transform": self.teacher.transform.config(), "images": fingerprint}

        def write(folder: Path) -> None:
            write_features(
                folder, images, encode=self._embed_images, transform=self.teacher.transform,
                batch_size=self.data.eval_batch_size, positions=False, about=about, option=OPTION,
                progress=progress_bar("images") if self.trainer.is_global_zero else None,
            )  # fmt: skip

        return self._make(root / cache_key(about, False), f"{len(images) - 1:,} images", self._images_agree, write)

    def _make_texts(self, root: Path, about: dict[str, Any]) -> Path:
        texts = DistinctTexts.of(self.reader.texts.records)
        state = json.dumps(self.teacher.tokenizer.state(), sort_keys=True, default=str)
        about = {**about, "tokenizer": _hash(state), "max_length": self.teacher.max_length, "texts": texts.digest}

        def write(folder: Path) -> None:
            with warnings.catch_warnings(record=True) as long:
                warnings.simplefilter("always")
                write_texts(
                    folder, texts, encode=self.teacher.embed_texts, about=about, option=OPTION,
                    progress=progress_bar("texts") if self.trainer.is_global_zero else None,
                )  # fmt: skip
            if long:  # one for each batch of texts
                self._print(f"of a batch of texts of {self.split}: {long[0].message}")

        def agree(folder: Path) -> bool:
            self.reader.texts.open(folder)
            some = [text for _, text in zip(range(CHECKED), texts, strict=False)]
            return _close(self.reader.texts.read(range(len(some))), self.teacher.embed_texts(some))

        return self._make(root / cache_key(about, False), f"{len(texts):,} texts", agree, write)

    def _make(self, folder: Path, what: str, agrees: Callable[[Path], bool], write: Callable[[Path], None]) -> Path:
        try:
            agreed = folder.is_dir() and agrees(folder)
        except (OSError, ValueError, KeyError):
            agreed = False
        if agreed:
            self._print(f"the embeddings of {what} of {self.split} are read from {folder}.")
            return folder
        if folder.is_dir():
            self._print(f"{folder} does not match the teacher, or is damaged: it is written again.")
            shutil.rmtree(folder)
        started = time.perf_counter()
        self._print(f"{what} of {self.split} are embedded once by {self.loss.teacher}, into {folder} ...")
        write(folder)
        self._print(f"done in {time.perf_counter() - started:.0f} s.")
        return folder

    def _embed_images(self, pixels: Tensor) -> EncoderOutput:
        with torch.inference_mode():
            encoded = self.teacher.model.encode_image(pixels.to(self.teacher.device))
        embeds = self.teacher.embed_image(encoded)
        return EncoderOutput(embeds[:, None], embeds)

    def _images_agree(self, folder: Path) -> bool:
        """Whether a few images, embedded again, have the embeddings of the cache."""
        reader = self.reader.images
        reader.open(folder, positions=False)
        readable = [row for row in range(len(reader.images) - 1) if row not in reader.bad_samples]
        rows = readable[:: max(1, len(readable) // CHECKED)][:CHECKED]
        transform = Readable(self.teacher.transform)
        pixels = [transform(reader.images[row]) for row in [*rows, *list(reader.bad_samples)[:CHECKED]]]
        if list(transform.bad_samples) != list(reader.bad_samples)[:CHECKED]:
            return False  # images have become readable or unreadable
        embedded = self._embed_images(torch.stack(pixels[: len(rows)])).pooled if rows else None
        return embedded is None or _close(reader.read(rows).pooled, embedded)

    def _print(self, message: str) -> None:
        if self.trainer.is_global_zero:
            print(f"Teacher: {message}")


def _close(cached: Tensor, embedded: Tensor) -> bool:
    return cached.shape == embedded.shape and bool((cached.float() - embedded.float()).abs().max() <= TOLERANCE)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
