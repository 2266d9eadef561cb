"""What flows between the rooms, and the letters its shapes are written in.

B batch, N image positions (or memory positions), T tokens, D width of an encoder, E joint embedding,
V vocabulary, H x W pixels. Masks are bool and True where there is content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class EncoderOutput:
    """What an image or a text encoder makes of its input.

    Attributes:
        features: float (B, N, D), one vector for each position; (B, T, D) from a text encoder.
        pooled: float (B, D), one vector for the whole.
        mask: bool (B, N), True where `features` holds content; None when every position does.
        grid: (H', W') with H' * W' == N when the positions lie on an image, row by row; else None.
        words: float (B, T, D), what the decoder has made of the words, where the text encoder goes on from that and the
            decoder may go on from it too; else None.
    """

    features: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    words: Tensor | None = None

    def select(self, rows: Tensor) -> EncoderOutput:
        """The output of the samples `rows` (int64 (R,)), as they are listed."""
        mask = None if self.mask is None else self.mask[rows]
        words = None if self.words is None else self.words[rows]
        return EncoderOutput(self.features[rows], self.pooled[rows], mask, self.grid, words)


@dataclass
class EncodedImages:
    """What a frozen image encoder made of images, as it is kept: in half precision.

    Attributes:
        features: float16 (B, N, D); N is 0 where only `pooled` is asked for.
        pooled: float16 (B, D).
        mask: bool (B, N) or None, as of `EncoderOutput`.
        grid: (H', W') or None, as of `EncoderOutput`.
        dtypes: those of `features` and `pooled` as they came from the encoder.
    """

    features: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)

    def output(self) -> EncoderOutput:
        """As the encoder gave it, up to what half precision has rounded."""
        features, pooled = self.features.to(self.dtypes[0]), self.pooled.to(self.dtypes[1])
        return EncoderOutput(features, pooled, self.mask, self.grid)

    def map(self, function: Callable[[Tensor], Tensor]) -> EncodedImages:
        """The same with every tensor replaced by `function` of it."""
        mask = None if self.mask is None else function(self.mask)
        return EncodedImages(function(self.features), function(self.pooled), mask, self.grid, self.dtypes)


@dataclass
class DecoderOutput:
    """What a decoder makes of a whole sentence under teacher forcing.

    Attributes:
        hidden: float (B, T, D'), to be multiplied by the output projection.
        attention: float (B, T, N), where each step looked, rows summing to 1; None if not at hand.
        penalty: float (), a regulariser that the captioning loss adds as it is; None when there is none.
    """

    hidden: Tensor
    attention: Tensor | None = None
    penalty: Tensor | None = None


@dataclass
class Batch:
    """A training batch; `batch[:n]` is its first n samples.

    Attributes:
        images: uint8 (B, 3, H, W) as read, or float already normalised; None without images, and where they come
            encoded. See `image_rows`.
        tokens: int64 (B, T), bos ... eos, padded.
        mask: bool (B, T), True on bos ... eos.
        image_ids: int64 (B,), equal where two samples show the same image.
        target_tokens: int64 (B, S), bos ... eos, the sentence to write; None where it is `tokens`.
        target_mask: bool (B, S).
        target_count: float (), the number of predicted tokens that a mean is taken over, where that is not
            simply this batch's own (several devices: their mean).
        image_rows: int64 (B,), the row of `images` or `encoded` that each sample shows, where samples share images
            and there are fewer of these than B; None where each has its own.
        encoded: the images as a frozen encoder has seen them, in place of `images`.
        group: the torch.distributed group whose ranks hold the rows of the batch between them, this rank's being
            here; None where the batch is whole.
    """

    images: Tensor | None
    tokens: Tensor | None
    mask: Tensor | None
    image_ids: Tensor
    target_tokens: Tensor | None = None
    target_mask: Tensor | None = None
    target_count: Tensor | None = None
    image_rows: Tensor | None = None
    encoded: EncodedImages | None = None
    group: Any = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def _map(self, function: Any) -> Batch:
        changed = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        encoded = None if self.encoded is None else self.encoded.map(function)
        return replace(self, **{name: function(tensor) for name, tensor in changed.items()}, encoded=encoded)

    def __getitem__(self, rows: slice) -> Batch:
        return self._map(lambda tensor: tensor[rows] if tensor.dim() else tensor)

    def predicted(self) -> Tensor:
        """How many tokens a decoder is to predict, int64 (): those of the targets, or of the texts, but for bos."""
        mask = self.mask if self.target_mask is None else self.target_mask
        assert mask is not None
        return mask[:, 1:].sum()

    def pieces(self, size: int) -> list[Batch]:
        """The batch in pieces of `size` samples, the last one may have fewer.

        Each has the images that it shows, and sentences padded to its own longest.
        """
        return [self._piece(slice(start, start + size)) for start in range(0, len(self), size)]

    def _piece(self, rows: slice) -> Batch:
        if self.image_rows is None:
            shown, image_rows = rows, None  # no copy of the images
        else:
            shown, image_rows = self.image_rows[rows].unique(return_inverse=True)
        piece = replace(
            self,
            images=None if self.images is None else self.images[shown],
            encoded=None if self.encoded is None else self.encoded.map(lambda tensor: tensor[shown]),
            image_rows=image_rows,
            image_ids=self.image_ids[rows],
        )
        piece.tokens, piece.mask = _trimmed(self.tokens, self.mask, rows)
        piece.target_tokens, piece.target_mask = _trimmed(self.target_tokens, self.target_mask, rows)
        return piece

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(lambda tensor: tensor.pin_memory())


def _trimmed(tokens: Tensor | None, mask: Tensor | None, rows: slice) -> tuple[Tensor | None, Tensor | None]:
    """Some of the sentences, without the columns that hold only padding."""
    if tokens is None or mask is None:
        return None, None
    longest = int(mask[rows].sum(dim=1).max())
    return tokens[rows, :longest], mask[rows, :longest]


@dataclass
class VisionLanguageOutput:
    """Everything a loss may ask for; what the model did not compute is None.

    Attributes:
        image_embeds: float (B, E), L2-normalised.
        text_embeds: float (B, E), L2-normalised.
        image: the image encoder's output.
        text: the text encoder's output.
        decoder: hidden states (B, T - 1, D') that predict `labels`.
        labels: int64 (B, T - 1), the target without its bos; padding holds `IGNORE`.
        output_projection: linear D' -> V, not yet multiplied.
    """

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    image: EncoderOutput | None = None
    text: EncoderOutput | None = None
    decoder: DecoderOutput | None = None
    labels: Tensor | None = None
    output_projection: nn.Linear | None = None


IGNORE = -100  # torch's own default ignore_index of cross-entropy

EMBEDS = frozenset({"image_embeds", "text_embeds"})
"""What a loss asks for that compares images with sentences."""
