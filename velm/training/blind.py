"""`BlindScores`: a validation's captioning metrics without the images (see `velm.evaluation.blind`)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from velm.decoders.prefix import PrefixDecoder
from velm.errors import ConfigError
from velm.evaluation.blind import BLIND, empty_image, looks_at_image
from velm.losses.weighted import WeightedLosses
from velm.model import VisionLanguageModel
from velm.outputs import Batch, EncodedImages, VisionLanguageOutput
from velm.training.validation import SplitScores

__all__ = ["BlindScores", "blind_scores", "is_blind_measured"]


def is_blind_measured(model: VisionLanguageModel, option: bool | None) -> bool:
    """Whether validations measure captions without the image, too.

    Args:
        model: of the run.
        option: `model.validation.blind`; None: of decoders that read the image as a prefix.

    Raises:
        ConfigError: it is true, and no decoder attends over the image.
    """
    if option and not looks_at_image(model):
        raise ConfigError(
            "model.validation.blind is true, which captions without the image, and no decoder of this model attends "
            "over the image: set it to false, or add image to model.memory."
        )
    return looks_at_image(model) and (isinstance(model.decoder, PrefixDecoder) if option is None else option)


def blind_scores(scores: SplitScores) -> BlindScores | None:
    """The scores without images that go with `scores`; None: they are not asked for, or no loss trains the decoder."""
    losses = {name: loss for name, loss in scores.losses.named().items() if loss.requires == frozenset({"decoder"})}
    if not losses or not is_blind_measured(scores.pipeline.model, scores.config.blind):
        return None
    weighted = WeightedLosses(losses, {name: scores.losses.weights[name] for name in losses})
    return BlindScores(scores.pipeline, scores.records, weighted, scores.config)


class BlindScores(SplitScores):
    """`SplitScores` of the same batches with an image without content, which is encoded once."""

    image: EncodedImages | None = None
    caption: str | None = None

    def update(self, batch: Batch) -> None:
        """Add a batch, whose images are not looked at."""
        if self.image is None:
            empty = empty_image(self.pipeline)
            dtypes = empty.features.dtype, empty.pooled.dtype
            self.image = EncodedImages(empty.features, empty.pooled, empty.mask, empty.grid, dtypes)
        rows = batch.image_ids.new_zeros(len(batch))
        super().update(replace(batch, images=None, encoded=self.image, image_rows=rows, sharing=1))

    def _caption(self, batch: Batch, output: VisionLanguageOutput, rows: Tensor) -> None:
        """As that of `SplitScores`; a decoder that reads no text writes the same caption for all."""
        if "text" in self.pipeline.model.reads or not len(rows):
            return super()._caption(batch, output, rows)
        if self.caption is None:
            super()._caption(batch, output, rows[:1])
            self.caption = self.captions[int(batch.image_ids[rows[0]])]
        self.captions |= dict.fromkeys(batch.image_ids[rows].tolist(), self.caption)
        return None

    def compute(self) -> dict[str, float]:
        """The metrics as `blind/<loss>` and `blind/caption/...`; the same on all ranks."""
        metrics = super().compute()
        return {f"{BLIND}{name}": value for name, value in metrics.items() if name not in ("loss", "score")}
