"""`data.cache_features`: what a frozen image encoder sees, computed once, before the first step.

A cache is named by a hash of all that its numbers depend on, so another encoder, other weights or other images look
for another name. What a hash cannot see (a changed library, a file swapped without its date) shows when a few of its
images are encoded again, which is done each time before it is used.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor, nn

from velm import _compat
from velm.data.feature_cache.fingerprint import fingerprint
from velm.data.feature_cache.store import FeatureReader, Readable, write_features
from velm.errors import ConfigError, MissingSplitError
from velm.outputs import EncoderOutput
from velm.version import __version__

if TYPE_CHECKING:
    from velm.data.images.transforms import EvalTransform
    from velm.model import VisionLanguageModel

__all__ = ["FORMAT", "cache_folder", "describe", "prepare_features", "require_frozen"]

FORMAT = 1
"""The number of the files' layout; raised when older ones would be misread."""
CHECKED = 3  # images of a cache that are encoded again before it is used
TOLERANCE = 0.02  # of the largest feature: bfloat16 rounds to a 256th, and batches of other sizes add up otherwise


def cache_folder(option: bool | str) -> Path:
    """The folder that `data.cache_features` names; for True the user's cache."""
    if isinstance(option, str):
        return Path(option).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "velm" / "features"


def require_frozen(encoder: nn.Module | None) -> None:
    """See that an image encoder gives the same features for an image throughout training.

    Raises:
        ConfigError: there is none, some of it is trained, or it drops or averages at random; with what to set.
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


def _random(module: nn.Module) -> bool:
    """Whether a module in training mode depends on chance or on the rest of the batch."""
    kind = type(module).__name__.lower()
    drops = _compat.is_dropout(module) or "drop" in kind or "stochasticdepth" in kind
    return _compat.is_running_norm(module) or (drops and getattr(module, "p", getattr(module, "drop_prob", 1.0)) != 0)


def prepare_features(
    trainer: lightning.Trainer, model: VisionLanguageModel, encoder_config: Any, requires: frozenset[str]
) -> None:
    """Open the caches of the splits that a fit reads, and encode what there is none of; a line is printed for each.

    One process of each machine encodes, the others wait.

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
    """The cache of a split under a task as it stands."""

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
            images=fingerprint(images),
        )  # fmt: skip
        self.folder = root / self._key(self.positions)
        if not self.positions and (root / self._key(True)).is_dir():
            self.folder = root / self._key(True)  # has the pooled vectors too

    def _key(self, positions: bool) -> str:
        told = json.dumps({**self.about, "positions": positions}, sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def open(self) -> None:
        self.reader.open(self.folder, self.positions)

    def make(self, batch_size: int) -> None:
        """See that the folder is there and right."""
        count = len(self.reader.images) - 1
        if self._fits():
            self._say(f"{count:,} images of {self.split} are read from {self.folder}.")
        else:
            started = time.perf_counter()
            if self.folder.is_dir():
                self._say(f"{self.folder} does not fit the encoder any more, or is damaged: it is written anew.")
                shutil.rmtree(self.folder)
            self._say(f"{count:,} images of {self.split} are encoded once, into {self.folder} ...")
            write_features(
                self.folder, self.reader.images, encode=self.encode, transform=self.transform,
                batch_size=batch_size, positions=self.positions, about={**self.about, "positions": self.positions},
                progress=_progress() if self.trainer.is_global_zero else None,
            )  # fmt: skip
            size = sum(file.stat().st_size for file in self.folder.iterdir())
            self._say(f"done in {time.perf_counter() - started:.0f} s, {size / 1e9:.2f} GB.")
        self.open()
        if self.reader.bad_samples:
            first = next(iter(self.reader.bad_samples.values()))
            self._say(f"{len(self.reader.bad_samples)} of {self.split} cannot be read: {first}")

    def _say(self, what: str) -> None:
        if self.trainer.is_global_zero:
            print(f"Features: {what}")

    @torch.no_grad()
    def _fits(self) -> bool:
        """Whether the cache is there, and a few images encoded again are as it has them."""
        try:
            self.open()
        except (OSError, ValueError, KeyError):
            return False
        bad_samples, last = self.reader.bad_samples, len(self.reader.images) - 1
        readable = [row for row in range(last) if row not in bad_samples]
        chosen = readable[:: max(1, len(readable) // CHECKED)][:CHECKED]
        transform = Readable(self.transform)
        again = [transform(self.reader.images[row]) for row in [*chosen, *list(bad_samples)[:CHECKED]]]
        if list(transform.bad_samples) != list(bad_samples)[:CHECKED]:
            return False  # what could not be read then can be now, or the other way round
        if not chosen:
            return True
        kept = self.reader.read([torch.tensor(row) for row in chosen]).output()
        seen = self.encode(torch.stack(again[: len(chosen)]))
        return _close(kept.pooled, seen.pooled) and (not self.positions or _close(kept.features, seen.features))

    def encode(self, pixels: Tensor) -> EncoderOutput:
        """As a training step does it: on its device, in its precision, with gradients on (which some encoders ask)."""
        encoder = self.model.image_encoder
        assert encoder is not None
        modes = {module: module.training for module in encoder.modules()}
        with self.trainer.precision_plugin.forward_context():
            encoder.eval()
            output = self.model.encode_image(pixels.to(self.trainer.strategy.root_device))
        for module, training in modes.items():
            module.training = training
        return output


def _close(kept: Tensor, seen: Tensor) -> bool:
    kept, seen = kept.float(), seen.detach().float().cpu()
    return kept.shape == seen.shape and bool((kept - seen).abs().max() <= TOLERANCE * seen.abs().max() + 1e-6)


def _progress() -> Callable[[int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{done}/{total} images", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def describe(
    encoder: Any, encoder_config: Any, precision: str, *, transform: dict[str, Any], images: str
) -> dict[str, Any]:
    """All that a split's features depend on, in plain Python.

    Args:
        encoder: the image encoder with its weights as they are to be used.
        encoder_config: its part config.
        precision: the Trainer's.
        transform: config of what is done to every image.
        images: the split's, by `velm.data.feature_cache.fingerprint.fingerprint`.
    """
    return {
        "format": FORMAT,
        "encoder": encoder_config,
        "code": _code(type(encoder)),
        "weights": _weights(encoder),
        "normalisation": [list(encoder.image_mean), list(encoder.image_std)],
        "transform": transform,
        "images": images,
        "precision": precision,
    }


def _code(cls: type) -> list[str]:
    """The class, the file it is written in, VELM's version and torch's."""
    try:
        content = Path(inspect.getfile(cls)).read_bytes()
    except (TypeError, OSError):  # written in a notebook
        content = b""
    return [f"{cls.__module__}:{cls.__qualname__}", hashlib.sha256(content).hexdigest(), __version__, torch.__version__]


def _weights(encoder: nn.Module) -> str:
    """A hash of every tensor of a state dict, buffers included."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
