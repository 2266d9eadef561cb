"""The data of a run: a dataset, a tokenizer trained on its training split, transforms, loaders."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from velm import registry
from velm.data.base import Dataset, Record, text_only
from velm.data.batches.buckets import LengthBatchSampler, sample_lengths
from velm.data.batches.collate import Collate
from velm.data.batches.lengths import check_lengths
from velm.data.batches.loader import Loader, ResumableLoader
from velm.data.batches.negatives import NegativeDraws
from velm.data.batches.samplers import ImageBatchSampler, ShareSampler
from velm.data.batches.samples import RANDOM_CAPTIONS, Captions, CaptionSamples
from velm.data.feature_cache.store import FeatureReader
from velm.data.feature_cache.teacher import TeacherReader
from velm.data.images.transforms import CropRounding, Decode, EvalTransform, Interpolation, Resize, TrainTransform
from velm.data.text.base import Tokenizer
from velm.data.text.template import Template, fixed_text
from velm.data.text.vocabulary import check_vocabulary
from velm.errors import ConfigError, DataError, MissingSplitError
from velm.registry.scalars import Value
from velm.training.config import Augmentation
from velm.training.recovery.resume import run_seed


class VisionLanguageData(lightning.LightningDataModule):
    """Builds a dataset, a tokenizer, transforms and loaders from their configs.

    Args:
        dataset: part config of a dataset, e.g. {name: csv, path: captions.csv}.
        tokenizer: part config of a tokenizer; an untrained one is trained on the training split's captions.
        image_size: side of the encoder's square input images, in pixels.
        resize, interpolation, decode, crop_rounding: see `velm.data.images.geometry.Geometry`.
        augment: random changes to training images.
        batch_size: samples per step and device.
        eval_batch_size: images per step in validation; None: `batch_size`.
        captions: of an image's sentences, a 'random' one each epoch, one drawn by its weight ('weighted', see
            `weight_column`), 'all' of them, or the 'first'.
        captions_per_image: captions of an image that come with it in a step, which then encodes the image once
            for all of them; with 'random' and 'weighted'. A batch has `batch_size` images and so many times as many
            sentences.
        bucket_by_length: make batches of sentences of like length, which need little padding; needs each image once
            an epoch (not captions: all).
        max_tokens: in place of `batch_size`: so many samples of like length that they have at most so many tokens on
            a device, padding included.
        max_length: longest sentence in tokens, bos and eos included; longer ones are cut, with a warning.
        num_workers: worker processes that read images; 0: the main process reads them.
        max_bad: share of a split's images, in [0, 1], that may be unusable: they are left out and named in
            quarantine.jsonl; above it the run ends.
        seed: of order, choice of sentence and augmentation; None: the run's `seed_everything`, or 0.
        plugins: modules or .py files whose decorators register parts.
        template: of the prompts of a decoder with `decoder.template`, which sets it (see `velm.data.text.template`).
        cache_features: before a fit, encode each image once by the frozen image encoder and read its features from
            then on, in place of the image; a folder to keep them in, or True for ~/.cache/velm/features.
    """

    def __init__(
        self,
        *,
        dataset: dict[str, Value] | str,
        tokenizer: dict[str, Value] | str = "word",
        image_size: int = 224,
        resize: Resize = "crop",
        interpolation: Interpolation = "bilinear",
        decode: Decode = "scaled",
        crop_rounding: CropRounding = "down",
        augment: Augmentation = Augmentation(),  # noqa: B008 - never mutated
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        captions: Captions = "random",
        captions_per_image: int = 1,
        bucket_by_length: bool = False,
        max_tokens: int | None = None,
        max_length: int = 64,
        num_workers: int = 0,
        max_bad: float = 0.01,
        seed: int | None = None,
        plugins: list[str] | None = None,
        template: str | None = None,
        cache_features: bool | str = False,
    ) -> None:
        super().__init__()
        least = {"image_size": (image_size, 1), "batch_size": (batch_size, 1), "max_length": (max_length, 3)}
        for what, (number, minimum) in least.items():  # three tokens: bos, a word, eos
            if number < minimum:
                raise ConfigError(f"data.{what} must be at least {minimum}; got {number}.")
        self.plugins = list(plugins or [])
        registry.load_plugins(self.plugins)
        self.dataset_config, self.tokenizer_config = registry.datasets.as_typed(dataset), tokenizer
        self.image_size, self.augment = image_size, augment
        self.geometry: dict[str, Any] = {
            "resize": resize, "interpolation": interpolation, "decode": decode, "crop_rounding": crop_rounding,
        }  # fmt: skip
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.captions, self.max_length, self.num_workers = captions, max_length, num_workers
        if captions_per_image < 1 or (captions_per_image > 1 and captions not in RANDOM_CAPTIONS):
            raise ConfigError(
                f"data.captions_per_image is {captions_per_image} with captions: {captions}; it is at least 1, and "
                f"above 1 only with captions: random or weighted (all: every caption is a sample of its own)."
            )
        if cache_features:
            _require_still(augment)
        self.captions_per_image = captions_per_image
        if not 0 <= max_bad <= 1:
            raise ConfigError(f"data.max_bad is a share of the data, between 0 and 1; got {max_bad}.")
        self.max_bad = max_bad
        self.bucket_by_length, self.max_tokens = bucket_by_length, max_tokens
        self.seed, self.template, self.cache_features = seed, template, cache_features
        self.dataset: Dataset = registry.datasets.build(dataset)
        self.dataset.max_bad = max_bad
        self._records: dict[str, Sequence[Record]] = {}
        self._features: dict[str, FeatureReader] = {}
        self.distils = False
        self.hard_negatives = 0
        self._teachers: dict[str, TeacherReader] = {}
        self._draws: NegativeDraws | None = None
        self._train_loader: ResumableLoader | None = None
        self._place: dict[str, int] | None = None

    @property
    def tokenizer_name(self) -> str:
        return registry.split_config(self.tokenizer_config, "tokenizer")[0]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Trained on the sentences (and targets) of the training split."""
        tokenizer: Tokenizer = registry.tokenizers.build(self.tokenizer_config)
        if not tokenizer.trained:
            records, prompt = self.records("train"), fixed_text(self.template)
            rows = (all_texts(text_only(records, index)) for index in range(len(records)))
            tokenizer.train(text for texts in rows for text in (texts if prompt is None else (prompt, *texts)))
        return tokenizer

    @cached_property
    def prompts(self) -> Template | None:
        """Makes the prompts of the texts; None without a template."""
        return None if self.template is None else Template(self.template, self.tokenizer)

    @property
    def negative_draws(self) -> NegativeDraws | None:
        """Draws the hard negatives of training captions; None unless a loss reads them (`hard_negatives` above 0).

        Raises:
            DataError: no training caption has words to exchange or to replace.
        """
        if not self.hard_negatives:
            return None
        if self._draws is None or self._draws.count != self.hard_negatives:
            self._draws = NegativeDraws.of_records(self.records("train"), self.hard_negatives)
        return self._draws

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_id

    @cached_property
    def has_target(self) -> bool:
        """Whether the data has a caption to write apart from the text."""
        return self.records("train")[0].targets is not None

    def records(self, split: str) -> Sequence[Record]:
        """The records of a split, read once.

        Raises:
            DataError: something in it is wrong; MissingSplitError: it is not there or empty.
        """
        if split not in self._records:
            self._records[split] = self.dataset.split(split)
        return self._records[split]

    def features(self, split: str) -> FeatureReader:
        """The features of a split's images under `cache_features`; a fit opens it when they are there."""
        if split not in self._features:
            self._features[split] = FeatureReader(self.records(split))
        return self._features[split]

    def teacher(self, split: str) -> TeacherReader | None:
        """A teacher's embeddings of a split, in a fit with one (`distils`); it opens them when they are there."""
        if not (self.distils and self._fits()):
            return None
        if split not in self._teachers:
            self._teachers[split] = TeacherReader(self.records(split))
        return self._teachers[split]

    def config(self) -> dict[str, Any]:
        """The plain config of the data, as a checkpoint stores it."""
        names = (
            "image_size", "batch_size", "captions", "captions_per_image", "bucket_by_length", "max_tokens",
            "max_length", "num_workers", "max_bad", "template",
        )  # fmt: skip
        stored = {name: getattr(self, name) for name in names}
        configs = {"dataset": self.dataset_config, "tokenizer": self.tokenizer_config}
        return {**configs, "augment": asdict(self.augment), **self.geometry, **stored}

    @property
    def eval_transform(self) -> EvalTransform:
        """The transform of images outside training."""
        return EvalTransform(image_size=self.image_size, **self.geometry)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            check_lengths(self.records("train"), self.tokenizer, self.max_length, template=self.prompts)
            if self.trainer is not None and self.trainer.limit_val_batches == 0:
                return
            with suppress(MissingSplitError):  # data without a validation split can be trained on
                check_vocabulary(self.records("val"), self.tokenizer)

    def train_dataloader(self) -> ResumableLoader:
        items = self.train_items()
        sampler = self.batch_sampler(items, rank=self._rank(), world_size=self._world_size())
        sampler.repeats = getattr(self.trainer, "overfit_batches", 0) > 0
        self._train_loader = ResumableLoader(items, batch_sampler=sampler, **self._options(items))
        if self._place is not None:
            self._train_loader.load_state_dict(self._place)
            self._place = None
        return self._train_loader

    @property
    def by_length(self) -> bool:
        """Whether a batch holds captions of similar length."""
        return self.bucket_by_length or self.max_tokens is not None

    def train_items(self) -> CaptionSamples:
        """The samples of training."""
        return self._items("train", train=True)

    def batch_sampler(self, items: CaptionSamples, *, rank: int = 0, world_size: int = 1) -> ImageBatchSampler:
        """The order and the batches of training samples.

        Raises:
            DataError: the samples cannot be batched as asked.
        """
        shared: dict[str, Any] = {
            "image_of": items.image_of, "batch_size": self.batch_size, "seed": self._seed(), "rank": rank,
            "world_size": world_size,
        }  # fmt: skip
        try:
            if not self.by_length:
                return ImageBatchSampler(**shared, shuffle=True, drop_last=True)
            return LengthBatchSampler(**shared, lengths=sample_lengths(items), max_tokens=self.max_tokens)
        except ValueError as error:
            raise DataError(str(error)) from error

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, for the checkpoint.

        Lightning keeps it for loaders with a state too, but brings it back too late where an optimizer's schedule asks
        for the number of steps: the loader is made then, before the state is there. An epoch cut short by
        `limit_train_batches` or `overfit_batches` ends where it is cut: the next one begins with the first batch.
        """
        if self._train_loader is None:
            return {}
        place = self._train_loader.state_dict()
        if self.trainer is not None and place["taken"] >= self.trainer.num_training_batches:
            place["taken"] = 0
        return {"train": place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The training loader begins there: the one made next or, since FSDP2 restores late, the one that is there."""
        self._place = state_dict.get("train")
        if self._train_loader is not None and self._place is not None:
            self._train_loader.load_state_dict(self._place)
            self._place = None

    def val_dataloader(self) -> DataLoader | list:
        try:
            return self._each_image_once("val")
        except MissingSplitError as error:
            if self.trainer is not None and self.trainer.state.fn == "fit":
                rank_zero_warn(f"{error} Without it there is no validation, and so last.ckpt but no best.ckpt.")
                return []
            raise

    def test_dataloader(self) -> DataLoader:
        return self._each_image_once("test")

    def predict_dataloader(self) -> DataLoader:
        return self._each_image_once("test")

    def _each_image_once(self, split: str) -> DataLoader:
        items = self._items(split, train=False)
        mine = ShareSampler(len(items), rank=self._rank(), world_size=self._world_size())
        return Loader(items, sampler=mine, batch_size=self.eval_batch_size, **self._options(items))

    def _items(self, split: str, train: bool) -> CaptionSamples:
        if train:
            transform: EvalTransform | TrainTransform = TrainTransform(
                image_size=self.image_size, **self.geometry, **asdict(self.augment)
            )
        else:
            transform = self.eval_transform
        return CaptionSamples(
            self.records(split), tokenizer=self.tokenizer, transform=transform, seed=self._seed(),
            captions=self.captions if train else "validation", max_length=self.max_length,
            captions_per_image=self.captions_per_image if train else 1, replace=train,
            features=self.features(split) if self._encoded() else None, teacher=self.teacher(split),
            template=self.prompts, all_turns=train, negatives=self.negative_draws if train else None,
        )  # fmt: skip

    def _encoded(self) -> bool:
        """Whether images come encoded: in a fit with `cache_features`, and nowhere else."""
        return bool(self.cache_features) and self._fits()

    def _fits(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == "fit"

    def _options(self, items: CaptionSamples) -> dict[str, Any]:
        return {
            "collate_fn": Collate(self.pad_id, items.features, items.teacher),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    def _seed(self) -> int:
        return run_seed() if self.seed is None else self.seed

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size


def _require_still(augment: Augmentation) -> None:
    """Refuse random augmentation of images that are encoded once."""
    on = {name: value for name, value in asdict(augment).items() if value not in (None, False, 0.0)}
    if on:
        listed = ", ".join(f"{name} {value}" for name, value in on.items())
        raise ConfigError(
            f"data.cache_features encodes an image once, so nothing random may be done to it, and data.augment has "
            f"{listed}. Set crop_scale: null, flip: false and color_jitter: 0 there, or cache_features: false."
        )


def all_texts(record: Record) -> tuple[str, ...]:
    return record.texts if record.targets is None else record.texts + record.targets
