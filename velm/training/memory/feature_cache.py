"""`data.cache_features`: encode every image once with a frozen image encoder before the first step.

A cache is named by a hash of everything its numbers depend on (`velm.data.feature_cache.key`). Changes that the hash
misses (a library, a file replaced with its old date) are detected by encoding a few images again before each use.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor, nn

from velm import _compat
from velm.data.feature_cache.key import cache_key, describe, fingerprint_images
from velm.data.feature_cache.store import FeatureReader, Readable, write_features
from velm.errors import ConfigError, MissingSplitError
from velm.outputs import EncoderOutput
from velm.util import evaluating, progress_bar

if TYPE_CHECKING:
    from velm.data.images.transforms import EvalTransform
    from velm.model import VisionLanguageModel

__all__ = ["cache_folder", "is_frozen", "prepare_features", "require_frozen"]

CHECKED = 3  # images encoded again before a cache is used
TOLERANCE = 0.02  # of the largest feature: bfloat16 has 8 bits, and the order of sums depends on the batch size


def cache_folder(option: bool | str) -> Path:
    """The folder of `data.cache_features`; for True ~/.cache/velm/features."""
    if isinstance(option, str):
        return Path(option).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "velm" / "features"


def require_frozen(encoder: nn.Module | None) -> None:
    """Check that an image encoder gives the same features for an image throughout training.

    Raises:
        ConfigError: there is no encoder, it has trainable parameters, or it uses dropout or batch statistics.
    """
    if encoder is None:
        raise ConfigError("data.cache_features is set, but the model has no image encoder: set it to false.")
    trained = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    if trained:
        listed = ", ".join(trained[:3]) + (" ..." if len(trained) > 3 else "")
        raise ConfigError(
            f"data.cache_features needs an image encoder that is wholly frozen, and {len(trained)} of its parameters "
            f"are trained ({listed}): set model.freeze: [image_encoder], or cache_features: false."
        )
    for name, module in encoder.named_modules():
        if module.training and _random(module):
            raise ConfigError(
                f"data.cache_features needs an image encoder whose features of an image never change, and {name} "
                f"({type(module).__name__}) is in training mode: set model.freeze: [image_encoder], which puts it into "
                f"eval mode, or cache_features: false."
            )


def is_frozen(encoder: nn.Module | None) -> bool:
    """Whether `require_frozen` accepts an image encoder, in the modes in which it is now."""
    try:
        require_frozen(encoder)
    except ConfigError:
        return False
    return True


def _random(module: nn.Module) -> bool:
    """Whether a module in training mode uses random numbers or batch statistics."""
    kind = type(module).__name__.lower()
    drops = _compat.is_dropout(module) or "drop" in kind or "stochasticdepth" in kind
    return _compat.is_running_norm(module) or (drops and getattr(module, "p", getattr(module, "drop_prob", 1.0)) != 0)


def prepare_features(
    trainer: lightning.Trainer, model: VisionLanguageModel, encoder_config: Any, requires: frozenset[str]
) -> None:
    """Open the feature caches of the training and validation splits; encode the images of those that are missing.

    Prints a line per split. One process per machine encodes, the others wait.

    Args:
        trainer: of the fit, with its data module.
        model: with the frozen image encoder.
        encoder_config: part config of the image encoder.
        requires: outputs that the losses require.
    """
    data = getattr(trainer, "datamodule", None)
    if not getattr(data, "cache_features", False):
        return
    assert data is not None
    require_frozen(model.image_encoder)
    for split in ("train", "val") if trainer.limit_val_batches else ("train",):
        try:
            reader = data.features(split)
        except MissingSplitError:
            continue
        root = cache_folder(data.cache_features)
        cache = _Cache(trainer, model, encoder_config, requires, split, reader, data.eval_transform, root)
        if trainer.local_rank == 0:
            cache.make(batch_size=data.eval_batch_size)
        trainer.strategy.barrier(f"features of {split}")
        cache.open()


class _Cache:
    """The feature cache of one split."""

    def __init__(
        self,
        trainer: lightning.Trainer,
        model: VisionLanguageModel,
        encoder_config: Any,
        requires: frozenset[str],
        split: str,
        reader: FeatureReader,
        transform: EvalTransform,
        root: Path,
    ) -> None:
        self.trainer, self.model = trainer, model
        self.split, self.reader, self.transform = split, reader, transform
        self.positions = "decoder" in requires and "image" in model.memory_sources
        images = (image for _, image in reader.images)
        self.about = describe(
            model.image_encoder, encoder_config, str(trainer.precision), transform=transform.config(),
            images=fingerprint_images(images),
        )  # fmt: skip
        self.folder = root / cache_key(self.about, self.positions)
        if not self.positions and (root / cache_key(self.about, True)).is_dir():
            self.folder = root / cache_key(self.about, True)  # has the pooled vectors too

    def open(self) -> None:
        self.reader.open(self.folder, self.positions)

    def make(self, batch_size: int) -> None:
        """Write the cache unless it exists and fits."""
        count = len(self.reader.images) - 1
        if self._fits():
            self._print(f"{count:,} images of {self.split} are read from {self.folder}.")
        else:
            started = time.perf_counter()
            if self.folder.is_dir():
                self._print(f"{self.folder} does not match the encoder, or is damaged: it is written again.")
                shutil.rmtree(self.folder)
            self._print(f"{count:,} images of {self.split} are encoded once, into {self.folder} ...")
            write_features(
                self.folder, self.reader.images, encode=self.encode, transform=self.transform,
                batch_size=batch_size, positions=self.positions, about={**self.about, "positions": self.positions},
                progress=progress_bar("images") if self.trainer.is_global_zero else None,
            )  # fmt: skip
            size = sum(file.stat().st_size for file in self.folder.iterdir())
            self._print(f"done in {time.perf_counter() - started:.0f} s, {size / 1e9:.2f} GB.")
        self.open()
        if self.reader.bad_samples:
            first = next(iter(self.reader.bad_samples.values()))
            self._print(f"{len(self.reader.bad_samples)} of {self.split} cannot be read: {first}")

    def _print(self, message: str) -> None:
        if self.trainer.is_global_zero:
            print(f"Features: {message}")

    @torch.no_grad()
    def _fits(self) -> bool:
        """Whether the cache exists and agrees with a few images encoded again."""
        try:
            self.open()
        except (OSError, ValueError, KeyError):
            return False
        bad_samples, last = self.reader.bad_samples, len(self.reader.images) - 1
        readable = [row for row in range(last) if row not in bad_samples]
        chosen = readable[:: max(1, len(readable) // CHECKED)][:CHECKED]
        transform = Readable(self.transform)
        pixels = [transform(self.reader.images[row]) for row in [*chosen, *list(bad_samples)[:CHECKED]]]
        if list(transform.bad_samples) != list(bad_samples)[:CHECKED]:
            return False  # images have become readable or unreadable
        if not chosen:
            return True
        cached = self.reader.read([torch.tensor(row) for row in chosen]).output()
        encoded = self.encode(torch.stack(pixels[: len(chosen)]))
        return _close(cached.pooled, encoded.pooled) and (
            not self.positions or _close(cached.features, encoded.features)
        )

    def encode(self, pixels: Tensor) -> EncoderOutput:
        """Encode as a training step does: on its device, in its precision, in eval mode."""
        encoder = self.model.image_encoder
        assert encoder is not None
        with self.trainer.precision_plugin.forward_context(), evaluating(encoder):
            return self.model.encode_image(pixels.to(self.trainer.strategy.root_device))


def _close(cached: Tensor, encoded: Tensor) -> bool:
    cached, encoded = cached.float(), encoded.detach().float().cpu()
    if cached.shape != encoded.shape:
        return False
    return bool((cached - encoded).abs().max() <= TOLERANCE * encoded.abs().max() + 1e-6)
