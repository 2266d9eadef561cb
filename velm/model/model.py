"""`VisionLanguageModel`: two encoders, two projections and an optional decoder in one ordinary `nn.Module`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm.decoders.base import Decoder
from velm.encoders.base import ImageEncoder, TextEncoder
from velm.encoders.length_groups import encode_in_groups
from velm.errors import ConfigError, PipelineError
from velm.negatives import NegativeEmbeddings
from velm.outputs import (
    EMBEDS,
    IGNORE,
    Batch,
    DecoderOutput,
    EncoderOutput,
    JointEmbeddings,
    NextTokenPrediction,
    VisionLanguageOutput,
    aligns,
)
from velm.prompt import Prompt, takes_text

Projection = Literal["linear", "affine", "mlp", "wide_mlp", "none"]
ALL_OUTPUTS = EMBEDS | {"decoder"}


class VisionLanguageModel(nn.Module):
    """Image and text encoder with projections into a joint space, and a decoder with cross-attention over them.

    Args:
        image_encoder: pixels to features; None: no images.
        text_encoder: tokens to features; None: no texts are read.
        decoder: generates captions; None: alignment only.
        embed_dim: E, width of the joint space; the projections exist if both encoders do.
        image_projection, text_projection: how a pooled vector becomes an embedding, see `build_projection`.
        memory: what the decoder attends over: 'image', 'text' or both, concatenated in this order.
        embed_dropout: dropout probability on `pooled` before the projections.
        pad_id: the padding token.
    """

    image_scale: Tensor
    image_shift: Tensor

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder | None,
        text_encoder: TextEncoder | None,
        decoder: Decoder | None = None,
        embed_dim: int = 256,
        image_projection: Projection = "linear",
        text_projection: Projection = "linear",
        memory: Sequence[str] = ("image",),
        embed_dropout: float = 0.0,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        self.pad_id, self.embed_dim = pad_id, embed_dim
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.decoder = decoder
        self.memory_sources = tuple(memory)
        self.aligned = image_encoder is not None and text_encoder is not None
        if image_encoder is not None:
            mean, std = torch.tensor(image_encoder.image_mean), torch.tensor(image_encoder.image_std)
            self.register_buffer("image_scale", (1 / (255 * std)).view(3, 1, 1), persistent=False)
            self.register_buffer("image_shift", (-mean / std).view(3, 1, 1), persistent=False)
        if image_encoder is not None and text_encoder is not None:
            self.image_projection = build_projection("image", image_projection, image_encoder.dim, embed_dim)
            self.text_projection = build_projection("text", text_projection, text_encoder.dim, embed_dim)
        self.embed_dropout = nn.Dropout(embed_dropout)
        if decoder is not None and (len(self.memory_sources) > 1 or decoder.image_gate):
            widths = {source: self._encoder(source).dim for source in self.memory_sources}
            width = memory_width(widths, decoder.image_gate)
            projected = ("image",) if decoder.image_gate else self.memory_sources
            self.memory_projections = nn.ModuleDict({s: nn.Linear(widths[s], width) for s in projected})

    def _encoder(self, source: str) -> ImageEncoder | TextEncoder:
        encoder = {"image": self.image_encoder, "text": self.text_encoder}[source]
        if encoder is None:
            raise PipelineError(f"This model has no {source}_encoder: give it one under `model:` and train it.")
        return encoder

    def forward(self, batch: Batch, needs: Collection[str] = ALL_OUTPUTS) -> VisionLanguageOutput:
        """Compute what the losses need.

        Args:
            batch: images and texts on the model's device.
            needs: which of 'image_embeds', 'text_embeds', 'decoder' to compute.
        """
        align = self.aligned and aligns(needs)
        predict = self.decoder is not None and "decoder" in needs
        output = VisionLanguageOutput()
        images = self.encode_images_of(batch) if align or (predict and "image" in self.memory_sources) else None
        if images is not None:
            output.image = images if batch.image_rows is None else images.select(batch.image_rows)
        if batch.tokens is not None and (align or (predict and "text" in self.memory_sources)):
            assert batch.mask is not None
            output.text = self.encode_text(batch.tokens, batch.mask)
        if align and output.image is not None and output.text is not None:
            image, text = self.embed_image(output.image), self.embed_text(output.text)
            output.embeddings = JointEmbeddings(image, text, self._embed_hard_negatives(batch))
        if predict:
            inputs, labels = self._shift(batch)
            decoded = self._decode(batch, inputs, images, output)
            output.prediction = NextTokenPrediction(decoded, labels, self._decoder().output_projection)
        return output

    def _embed_hard_negatives(self, batch: Batch) -> NegativeEmbeddings | None:
        negatives = batch.hard_negatives
        if negatives is None:
            return None
        text = self.embed_text(self.encode_text(negatives.tokens.flatten(0, 1), negatives.mask.flatten(0, 1)))
        return NegativeEmbeddings(text.view(*negatives.valid.shape, text.shape[1]), negatives.valid)

    def encode_images_of(self, batch: Batch) -> EncoderOutput | None:
        """Features of a batch's images, each encoded once; None without images."""
        if batch.encoded is not None:
            return batch.encoded.output()
        return None if batch.images is None else self.encode_image(batch.images)

    def encode_image(self, images: Tensor) -> EncoderOutput:
        """Encode images: uint8 (B, 3, H, W), or float if already normalised.

        Raises:
            PipelineError: the model has no image encoder, or it takes no images of this size.
        """
        encoder = self._encoder("image")
        if images.dtype == torch.uint8:
            pixels = images.to(self.image_scale.dtype)
            # (p / 255 - mean) / std in one pass, in place: `pixels` is a copy
            images = torch.addcmul(self.image_shift, pixels, self.image_scale, out=pixels)
        try:
            output: EncoderOutput = encoder(images)
        except ValueError as error:  # by the contract of `ImageEncoder`, a size that it does not take
            raise PipelineError(f"{error} The option is image_size.") from error
        return output

    def encode_text(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode texts: tokens int64 (B, T), mask bool (B, T).

        Raises:
            PipelineError: the model has no text encoder.
        """
        return encode_in_groups(self._encoder("text"), tokens, mask)

    def embed_image(self, image: EncoderOutput) -> Tensor:
        """Joint embedding float (B, E), L2-normalised, in float32 at least."""
        return _normalized(self.image_projection(self.embed_dropout(image.pooled)))

    def embed_text(self, text: EncoderOutput) -> Tensor:
        """Joint embedding float (B, E), L2-normalised, in float32 at least."""
        return _normalized(self.text_projection(self.embed_dropout(text.pooled)))

    @property
    def reads(self) -> tuple[str, ...]:
        """What the decoder reads: the sources of its memory, and 'text' if its template has a place for one."""
        template = None if self.decoder is None else self.decoder.template
        text = takes_text(template) and "text" not in self.memory_sources
        return (*self.memory_sources, "text") if text else self.memory_sources

    def memory(
        self, image: EncoderOutput | None, text: EncoderOutput | None, prompt: Prompt | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The decoder's memory: float (B, N, memory_dim) and mask bool (B, N) or None.

        Of a decoder with a template it is the whole prefix, the prompt included.

        Raises:
            ValueError: a source of the memory is missing, or the prompt of a decoder with a template.
        """
        memory, mask = self.encoder_memory(image, text)
        if self.decoder is None or self.decoder.template is None:
            return memory, mask
        if prompt is None:
            raise ValueError(f"The decoder has the template {self.decoder.template!r}, and the batch has no prompt.")
        return self.decoder.read_prompt(memory, mask, prompt)

    def encoder_memory(self, image: EncoderOutput | None, text: EncoderOutput | None) -> tuple[Tensor, Tensor | None]:
        """What the encoders give to the decoder, as `memory` without a prompt."""
        sources = {"image": image, "text": text}
        outputs = [(source, sources[source]) for source in self.memory_sources]
        present = [(source, output) for source, output in outputs if output is not None]
        if len(present) < len(outputs):
            raise ValueError(
                f"The decoder attends over {self.memory_sources}; the batch has {[source for source, _ in present]}."
            )
        if len(present) == 1:
            return present[0][1].features, present[0][1].mask
        features = [self._memory_features(source, output.features) for source, output in present]
        masks = [_mask_of(output) for _, output in present]
        return torch.cat(features, dim=1), torch.cat(masks, dim=1)

    def _memory_features(self, source: str, features: Tensor) -> Tensor:
        """Features of one of several sources at the memory's width; with a gate, a last channel marks the image."""
        if source in self.memory_projections:
            features = self.memory_projections[source](features)
        return F.pad(features, (0, 1), value=float(source == "image")) if self._decoder().image_gate else features

    def _decoder(self) -> Decoder:
        if self.decoder is None:
            raise PipelineError("This model has no decoder: give it one under `model:` and train it with captioning.")
        return self.decoder

    def _shift(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs and labels, int64 (B, T), a token apart: bos a b eos becomes (bos a b) and (a b eos).

        In a padded row eos is not an input either, so that padding never changes the decoder's penalty.
        """
        tokens, content = batch.target_tokens, batch.target_mask
        if tokens is None:
            tokens, content = batch.tokens, batch.mask
        assert tokens is not None
        assert content is not None
        padding = ~content[:, 1:]
        ignored = padding if batch.target_learnt is None else padding | ~batch.target_learnt[:, 1:]
        return tokens[:, :-1].masked_fill(padding, self.pad_id), tokens[:, 1:].masked_fill(ignored, IGNORE)

    def _decode(
        self, batch: Batch, inputs: Tensor, images: EncoderOutput | None, output: VisionLanguageOutput
    ) -> DecoderOutput:
        """The decoder under teacher forcing; `images` are not repeated for the samples that share them.

        The output of the decoder's unimodal blocks is computed once, by the text encoder. There eos was an input in
        every row; it is the last token, and no position that predicts a token has seen it.
        """
        decoder, rows = self._decoder(), batch.image_rows
        if rows is not None and images is not None and decoder.shares_memory and self.memory_sources == ("image",):
            texts = len(images.features) * batch.sharing  # beyond twice, the missing ones cost more than sharing saves
            if batch.sharing > 1 and texts <= 2 * len(rows):
                memory = self.encoder_memory(images, None)
                return decoder.decode_shared(inputs, *memory, rows, batch.sharing, batch.prompt)
        memory = self.memory(output.image, output.text, batch.prompt)
        words = None if output.text is None or batch.target_tokens is not None else output.text.words
        return decoder.decode(inputs, *memory, **({} if words is None else {"words": words[:, :-1]}))


def memory_width(widths: Mapping[str, int], image_gate: bool) -> int:
    """The width at which the sources of a memory meet, given the width of each.

    The narrower one: at a CNN's 1,280, text features of width 128 were hardly learnt. The text's if the decoder has an
    image_gate: the text is not projected then, so that a closed gate leaves the model without the image.

    Raises:
        ConfigError: there is a gate, and not both image and text.
    """
    if image_gate and set(widths) != {"image", "text"}:
        raise ConfigError(
            f"model.decoder.image_gate adds the image of a memory to its text, and memory {list(widths)} has one of "
            "them. Set memory: [image, text], or image_gate: false."
        )
    return widths["text"] if image_gate else min(widths.values())


def build_projection(source: str, kind: Projection, dim: int, embed_dim: int) -> nn.Module:
    """The map of a pooled vector, float (B, dim), to a joint embedding before normalisation, float (B, embed_dim).

    Args:
        source: 'image' or 'text', for messages.
        kind: linear, without bias (CLIP); affine, with one (SigLIP's texts); mlp, two linear maps without bias and a
            GELU (open_clip's text towers of transformers); wide_mlp, one with 2 E hidden units and a bias before its
            GELU (open_clip's convnext_large_d); none: the pooled vector itself (SigLIP's images).
        dim: width of the encoder.
        embed_dim: E.

    Raises:
        ConfigError: no such kind, or 'none' and the widths differ.
    """
    if kind not in get_args(Projection):
        raise ConfigError(f"model.{source}_projection is one of {', '.join(get_args(Projection))}; got {kind!r}.")
    if kind == "none":
        if dim != embed_dim:
            raise ConfigError(
                f"model.{source}_projection is none, so the width {dim} of the {source} encoder is that of the joint "
                f"space, and model.embed_dim is {embed_dim}: set embed_dim to {dim}, or take a linear projection."
            )
        return nn.Identity()
    if kind in ("mlp", "wide_mlp"):
        hidden, bias = ((dim + embed_dim) // 2, False) if kind == "mlp" else (2 * embed_dim, True)
        return nn.Sequential(nn.Linear(dim, hidden, bias=bias), nn.GELU(), nn.Linear(hidden, embed_dim, bias=False))
    return nn.Linear(dim, embed_dim, bias=kind == "affine")


def _normalized(vectors: Tensor) -> Tensor:
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=-1)


def _mask_of(output: EncoderOutput) -> Tensor:
    if output.mask is not None:
        return output.mask
    return torch.ones(output.features.shape[:2], dtype=torch.bool, device=output.features.device)
