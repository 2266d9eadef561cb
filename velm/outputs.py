"""The training batch and the outputs of encoders, decoders and the model.

Shapes: B batch, N image positions (or memory positions), T tokens, D width of an encoder, E joint embedding,
V vocabulary, H x W pixels. Masks are bool and True where there is content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from velm.errors import MissingOutputError
from velm.negatives import HardNegatives, NegativeEmbeddings
from velm.prompt import Prompt


@dataclass
class EncoderOutput:
    """The output of an image or a text encoder.

    Attributes:
        features: float (B, N, D), one vector for each position; (B, T, D) from a text encoder.
        pooled: float (B, D), one vector for the whole image or text.
        mask: bool (B, N), True on content; None: all positions are content.
        grid: (H', W') with H' * W' == N if the positions form a grid over the image, in row-major order; else None.
        words: float (B, T, D), output of the decoder's unimodal blocks (CoCa), from which the decoder continues; None
            from a text encoder that does not share them.
    """

    features: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    words: Tensor | None = None

    def select(self, rows: Tensor) -> EncoderOutput:
        """The output of the samples `rows`, int64 (R,)."""
        mask = None if self.mask is None else self.mask[rows]
        words = None if self.words is None else self.words[rows]
        return EncoderOutput(self.features[rows], self.pooled[rows], mask, self.grid, words)


@dataclass
class EncodedImages:
    """Output of a frozen image encoder: from a cache in half precision, or `of` the encoder as it is.

    Attributes:
        features: float16 from a cache (B, N, D); N is 0 if only `pooled` is needed.
        pooled: float16 from a cache (B, D).
        mask: bool (B, N) or None, as of `EncoderOutput`.
        grid: (H', W') or None, as of `EncoderOutput`.
        dtypes: the encoder's dtypes of `features` and `pooled`.
    """

    features: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)

    @classmethod
    def of(cls, output: EncoderOutput) -> EncodedImages:
        """Of an output that is not rounded; `output()` gives it back."""
        return cls(
            output.features, output.pooled, output.mask, output.grid, (output.features.dtype, output.pooled.dtype)
        )

    def output(self) -> EncoderOutput:
        """The encoder's output in its dtypes; from a cache, rounded to half precision."""
        features, pooled = self.features.to(self.dtypes[0]), self.pooled.to(self.dtypes[1])
        return EncoderOutput(features, pooled, self.mask, self.grid)

    def map(self, function: Callable[[Tensor], Tensor]) -> EncodedImages:
        """A copy with `function` applied to every tensor."""
        mask = None if self.mask is None else function(self.mask)
        return EncodedImages(function(self.features), function(self.pooled), mask, self.grid, self.dtypes)


@dataclass
class TeacherEmbeddings:
    """A teacher's joint embeddings of a batch, row i those of sample i.

    Attributes:
        image: float (B, E'), L2-normalised; float16 from a cache.
        text: float (B, E'), likewise.
        scale: the teacher's inverse temperature; None: it learned none.
    """

    image: Tensor
    text: Tensor
    scale: float | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> TeacherEmbeddings:
        """A copy with `function` applied to both tensors."""
        return TeacherEmbeddings(function(self.image), function(self.text), self.scale)


@dataclass
class SampledCaptions:
    """Says that the captions of a batch are samples of the model, and how good each is (self-critical training).

    Attributes:
        advantages: float (B,), (reward - baseline) of each caption, divided by the number of captions of the step (with
            several ranks, the mean of their numbers).
        suppressed: ids of tokens that are never sampled.
    """

    advantages: Tensor
    suppressed: tuple[int, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> SampledCaptions:
        """A copy with `function` applied to the advantages."""
        return SampledCaptions(function(self.advantages), self.suppressed)


@dataclass
class DecoderOutput:
    """The output of a decoder for a whole caption under teacher forcing.

    Attributes:
        hidden: float (B, T, D'), the input of the output projection.
        attention: float (B, T, N), weights over the memory at each step, rows summing to 1; None if not computed.
        penalty: float (), a regulariser that the captioning loss adds, a mean over samples; None: no regulariser.
    """

    hidden: Tensor
    attention: Tensor | None = None
    penalty: Tensor | None = None


@dataclass
class Batch:
    """A training batch; `batch[:n]` is its first n samples.

    Attributes:
        images: uint8 (B, 3, H, W), or float if already normalised; None without images or with `encoded`. See
            `image_rows`.
        tokens: int64 (B, T), bos ... eos, padded.
        mask: bool (B, T), True on bos ... eos.
        image_ids: int64 (B,), equal where two samples show the same image.
        target_tokens: int64 (B, S), bos ... eos, the caption to predict; None: `tokens`.
        target_mask: bool (B, S).
        target_count: float (), tokens that the captioning loss divides by; None: those predicted in this batch. With
            several ranks it is their mean, with micro-batches that of the whole batch.
        image_rows: int64 (B,), the row of `images` or `encoded` of each sample, if samples share images; None: row i is
            that of sample i.
        sharing: at least the number of samples that share an image.
        encoded: outputs of a frozen encoder in place of `images`.
        teacher: a teacher's embeddings of the samples, for distillation.
        prompt: what a decoder with a template reads around the image; None: it has none.
        target_learnt: bool (B, S), the target's tokens that the captioning loss is on (the answers of a conversation);
            None: all of them.
        sampled: of captions that the model has sampled; None: they are of the data.
        stand_in: this rank has no share of the step's batch: the samples are computed, so that the rank takes part in
            the step, and `drop_stand_in` takes them out before the losses.
        hard_negatives: captions that are false of the images; None: there are none.
    """

    images: Tensor | None
    tokens: Tensor | None
    mask: Tensor | None
    image_ids: Tensor
    target_tokens: Tensor | None = None
    target_mask: Tensor | None = None
    target_count: Tensor | None = None
    image_rows: Tensor | None = None
    sharing: int = 1
    encoded: EncodedImages | None = None
    teacher: TeacherEmbeddings | None = None
    prompt: Prompt | None = None
    target_learnt: Tensor | None = None
    sampled: SampledCaptions | None = None
    stand_in: bool = False
    hard_negatives: HardNegatives | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def _map(self, function: Any) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        changed = {name: function(tensor) for name, tensor in tensors.items()}
        for name in ("encoded", "teacher", "prompt", "sampled", "hard_negatives"):
            inner = getattr(self, name)
            changed[name] = None if inner is None else inner.map(function)
        return replace(self, **changed)

    def __getitem__(self, rows: slice) -> Batch:
        return self._map(lambda tensor: tensor[rows] if tensor.dim() else tensor)

    def predicted(self) -> Tensor:
        """Number of tokens that the decoder predicts, int64 (): those of the targets, or of the texts, without bos."""
        mask = self.mask if self.target_mask is None else self.target_mask
        assert mask is not None
        return (mask if self.target_learnt is None else mask & self.target_learnt)[:, 1:].sum()

    @property
    def samples(self) -> int:
        """Number of samples that the losses see: 0 of a stand-in."""
        return 0 if self.stand_in else len(self)

    def micro_batches(self, size: int) -> list[Batch]:
        """Split into micro-batches of `size` samples; the last one may have fewer.

        Each holds only its own images, and texts padded to its own longest.
        """
        return [self._micro_batch(slice(start, start + size)) for start in range(0, len(self), size)]

    def _micro_batch(self, rows: slice) -> Batch:
        if self.image_rows is None:
            images, image_rows = rows, None  # slicing copies nothing
        else:
            images, image_rows = self.image_rows[rows].unique(return_inverse=True)
        result = replace(
            self,
            images=None if self.images is None else self.images[images],
            encoded=None if self.encoded is None else self.encoded.map(lambda tensor: tensor[images]),
            image_rows=image_rows,
            image_ids=self.image_ids[rows],
            teacher=None if self.teacher is None else self.teacher.map(lambda tensor: tensor[rows]),
            sampled=None if self.sampled is None else self.sampled.map(lambda tensor: tensor[rows]),
        )
        result.tokens, result.mask = _trim(self.tokens, self.mask, rows)
        result.target_learnt, _ = _trim(self.target_learnt, self.target_mask, rows)
        result.target_tokens, result.target_mask = _trim(self.target_tokens, self.target_mask, rows)
        result.prompt = None if self.prompt is None else self.prompt.map(lambda tensor: tensor[rows]).trim()
        negatives = self.hard_negatives
        result.hard_negatives = None if negatives is None else negatives.map(lambda tensor: tensor[rows]).trim()
        return result

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(lambda tensor: tensor.pin_memory())


def _trim(tokens: Tensor | None, mask: Tensor | None, rows: slice) -> tuple[Tensor | None, Tensor | None]:
    """Rows of texts, without the columns that hold only padding."""
    if tokens is None or mask is None:
        return None, None
    longest = int(mask[rows].sum(dim=1).max())
    return tokens[rows, :longest], mask[rows, :longest]


@dataclass
class JointEmbeddings:
    """Images and texts in the joint space, row i a pair.

    Attributes:
        image: float (B, E), L2-normalised.
        text: float (B, E), L2-normalised.
        hard_negatives: of captions that are false of the images; None without them.
    """

    image: Tensor
    text: Tensor
    hard_negatives: NegativeEmbeddings | None = None


@dataclass
class NextTokenPrediction:
    """The decoder's hidden states under teacher forcing and the tokens that they predict.

    Attributes:
        decoder: hidden states (B, T - 1, D') that predict `labels`.
        labels: int64 (B, T - 1), the target without its bos; padding holds `IGNORE`.
        output_projection: linear D' -> V; the logits are not computed yet.
    """

    decoder: DecoderOutput
    labels: Tensor
    output_projection: nn.Linear


@dataclass
class VisionLanguageOutput:
    """The model's output; `needs` of the model's forward says what is computed.

    A loss reads `image_embeds`, `text_embeds`, `decoder`, `labels` and `output_projection`. Reading one that was not
    computed raises a MissingOutputError.

    Attributes:
        image: the image encoder's output; None if no loss needs it.
        text: the text encoder's output; None if no loss needs it.
        embeddings: of an aligned model; None if no loss needs them.
        prediction: of a model with a decoder; None if no loss needs it.
    """

    image: EncoderOutput | None = None
    text: EncoderOutput | None = None
    embeddings: JointEmbeddings | None = None
    prediction: NextTokenPrediction | None = None

    def has(self, name: str) -> bool:
        """Whether `image_embeds`, `text_embeds` or `decoder` was computed."""
        return (self.embeddings if name in EMBEDS else self.prediction) is not None

    @property
    def image_embeds(self) -> Tensor:
        """float (B, E), L2-normalised."""
        return self._embeddings("image_embeds").image

    @property
    def text_embeds(self) -> Tensor:
        """float (B, E), L2-normalised."""
        return self._embeddings("text_embeds").text

    @property
    def decoder(self) -> DecoderOutput:
        """Hidden states (B, T - 1, D') that predict `labels`."""
        return self._prediction("decoder").decoder

    @property
    def labels(self) -> Tensor:
        """int64 (B, T - 1), the target without its bos; padding holds `IGNORE`."""
        return self._prediction("labels").labels

    @property
    def output_projection(self) -> nn.Linear:
        """Linear D' -> V."""
        return self._prediction("output_projection").output_projection

    def _embeddings(self, name: str) -> JointEmbeddings:
        if self.embeddings is None:
            raise MissingOutputError(
                f"The output has no {name}: they need an image_encoder and a text_encoder, and a loss with {name} in "
                f"its `requires`."
            )
        return self.embeddings

    def _prediction(self, name: str) -> NextTokenPrediction:
        if self.prediction is None:
            raise MissingOutputError(
                f"The output has no {name}: it needs a decoder, and a loss with 'decoder' in its `requires`."
            )
        return self.prediction


IGNORE = -100  # torch's default ignore_index of cross-entropy

EMBEDS = frozenset({"image_embeds", "text_embeds"})
"""The outputs that an alignment loss requires, one of them or both."""


def aligns(requires: Iterable[str]) -> bool:
    """Whether a loss that requires these outputs is an alignment loss: it reads an image or a text embedding."""
    return not EMBEDS.isdisjoint(requires)
