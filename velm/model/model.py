"""`VisionLanguageModel`: two encoders, two projections and an optional decoder in one ordinary `nn.Module`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm.decoders.base import Decoder
from velm.encoders.base import ImageEncoder, TextEncoder
from velm.outputs import EMBEDS, IGNORE, Batch, DecoderOutput, EncoderOutput, VisionLanguageOutput

ALL_OUTPUTS = EMBEDS | {"decoder"}


class VisionLanguageModel(nn.Module):
    """Encoders that meet in a joint space, and a decoder that attends over what they see.

    Args:
        image_encoder: pixels to vectors; None where there are no images.
        text_encoder: tokens to vectors; None where no sentence is read.
        decoder: writes sentences; None for alignment only.
        embed_dim: E, width of the joint space; the projections exist when both encoders do.
        memory: what the decoder attends over: 'image', 'text' or both, in this order.
        embed_dropout: probability of zeroing a number of `pooled` before the projections into the joint space.
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
        memory: Sequence[str] = ("image",),
        embed_dropout: float = 0.0,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
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
            self.image_projection = nn.Linear(image_encoder.dim, embed_dim, bias=False)
            self.text_projection = nn.Linear(text_encoder.dim, embed_dim, bias=False)
        self.embed_dropout = nn.Dropout(embed_dropout)
        if decoder is not None and len(self.memory_sources) > 1:
            widths = {source: self._encoder(source).dim for source in self.memory_sources}
            width = min(widths.values())  # beside a CNN's 1,280, words of 128 were hardly learnt to be read
            self.memory_projections = nn.ModuleDict({s: nn.Linear(w, width) for s, w in widths.items()})

    def _encoder(self, source: str) -> ImageEncoder | TextEncoder:
        encoder = {"image": self.image_encoder, "text": self.text_encoder}[source]
        assert encoder is not None  # build_model has checked
        return encoder

    def forward(self, batch: Batch, needs: Collection[str] = ALL_OUTPUTS) -> VisionLanguageOutput:
        """Compute what the losses need.

        Args:
            batch: images and sentences on the model's device.
            needs: which of 'image_embeds', 'text_embeds', 'decoder' to compute.
        """
        align = self.aligned and bool(EMBEDS & set(needs))
        write = self.decoder is not None and "decoder" in needs
        output = VisionLanguageOutput()
        if align or (write and "image" in self.memory_sources):
            output.image = self._image(batch)
        if batch.tokens is not None and (align or (write and "text" in self.memory_sources)):
            assert batch.mask is not None
            output.text = self.encode_text(batch.tokens, batch.mask)
        if align and output.image is not None and output.text is not None:
            output.image_embeds = self.embed_image(output.image)
            output.text_embeds = self.embed_text(output.text)
        if write:
            words = None if output.text is None or batch.target_tokens is not None else output.text.words
            output.decoder, output.labels = self._decode(batch, *self.memory(output.image, output.text), words)
            output.output_projection = self._decoder().output_projection
        return output

    def _image(self, batch: Batch) -> EncoderOutput | None:
        """What is seen on a batch's images, each encoded once and shown by as many samples as share it."""
        if batch.encoded is not None:
            image = batch.encoded.output()
        elif batch.images is not None:
            image = self.encode_image(batch.images)
        else:
            return None
        return image if batch.image_rows is None else image.select(batch.image_rows)

    def encode_image(self, images: Tensor) -> EncoderOutput:
        """Images to features: uint8 (B, 3, H, W) as read, or float already normalised."""
        assert self.image_encoder is not None
        if images.dtype == torch.uint8:
            pixels = images.to(self.image_scale.dtype)
            # (p / 255 - mean) / std in one pass and in place: `pixels` is a copy, of another type
            images = torch.addcmul(self.image_shift, pixels, self.image_scale, out=pixels)
        return self.image_encoder(images)

    def encode_text(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        """Sentences to features: tokens int64 (B, T), mask bool (B, T)."""
        assert self.text_encoder is not None
        return self.text_encoder(tokens, mask)

    def embed_image(self, image: EncoderOutput) -> Tensor:
        """Joint embedding float (B, E), L2-normalised, in float32 at least."""
        return _normalized(self.image_projection(self.embed_dropout(image.pooled)))

    def embed_text(self, text: EncoderOutput) -> Tensor:
        """Joint embedding float (B, E), L2-normalised, in float32 at least."""
        return _normalized(self.text_projection(self.embed_dropout(text.pooled)))

    def memory(self, image: EncoderOutput | None, text: EncoderOutput | None) -> tuple[Tensor, Tensor | None]:
        """What the decoder attends over: float (B, N, memory_dim) and mask bool (B, N) or None."""
        sources = {"image": image, "text": text}
        outputs = [(source, sources[source]) for source in self.memory_sources]
        given = [(source, output) for source, output in outputs if output is not None]
        if len(given) < len(outputs):
            raise ValueError(f"The decoder attends over {self.memory_sources}; the batch gave {[s for s, _ in given]}.")
        if len(given) == 1:
            return given[0][1].features, given[0][1].mask
        features = [self.memory_projections[source](output.features) for source, output in given]
        masks = [_mask_of(output) for _, output in given]
        return torch.cat(features, dim=1), torch.cat(masks, dim=1)

    def _decoder(self) -> Decoder:
        assert self.decoder is not None
        return self.decoder

    def _decode(
        self, batch: Batch, memory: Tensor, mask: Tensor | None, words: Tensor | None = None
    ) -> tuple[DecoderOutput, Tensor]:
        """The one place where input and target are shifted: bos a b eos -> (bos a b) predicts (a b eos).

        Where another sentence of the batch is longer, eos is not fed either: whatever a decoder makes of what it is fed
        (a penalty), padding never changes it.

        Args:
            batch, memory, mask: see `forward` and `memory`.
            words: float (B, T, D), what the decoder has made of the sentence already. There eos was read wherever it
                stands; it is the last word of its sentence, and no position before it, where words are predicted, has
                seen it.
        """
        sentence, content = batch.target_tokens, batch.target_mask
        if sentence is None:
            sentence, content = batch.tokens, batch.mask
        assert sentence is not None
        assert content is not None
        over = ~content[:, 1:]
        inputs, labels = sentence[:, :-1].masked_fill(over, self.pad_id), sentence[:, 1:].masked_fill(over, IGNORE)
        shared = {} if words is None else {"words": words[:, :-1]}
        return self._decoder().decode(inputs, memory, mask, **shared), labels


def _normalized(vectors: Tensor) -> Tensor:
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=-1)


def _mask_of(output: EncoderOutput) -> Tensor:
    if output.mask is not None:
        return output.mask
    return torch.ones(output.features.shape[:2], dtype=torch.bool, device=output.features.device)
