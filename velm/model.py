"""Two encoders, two projections and perhaps a decoder, joined: an ordinary `nn.Module`, and its builder."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm import registry
from velm.decoders.base import Decoder
from velm.encoders.base import ImageEncoder, TextEncoder
from velm.outputs import EMBEDS, IGNORE, Batch, DecoderOutput, EncoderOutput, VisionLanguageOutput

MODEL_KEYS = (
    "image_encoder", "text_encoder", "decoder", "embed_dim", "embed_dropout", "memory", "losses",
    "vocab_size", "pad_id", "plugins",
)  # fmt: skip
EVERYTHING = EMBEDS | {"decoder"}


class VisionLanguageModel(nn.Module):
    """Encoders that meet in a joint space, and a decoder that attends over what they see.

    Args:
        image_encoder: pixels to vectors; None where there are no pictures.
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

    def forward(self, batch: Batch, needs: Collection[str] = EVERYTHING) -> VisionLanguageOutput:
        """Compute what the losses need.

        Args:
            batch: pictures and sentences on the model's device.
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
            output.decoder, output.labels = self._decode(batch, *self.memory(output.image, output.text))
            output.output_projection = self._decoder().output_projection
        return output

    def _image(self, batch: Batch) -> EncoderOutput | None:
        """What is seen on a batch's pictures, each encoded once and shown by as many samples as share it."""
        if batch.encoded is not None:
            image = batch.encoded.output()
        elif batch.images is not None:
            image = self.encode_image(batch.images)
        else:
            return None
        return image if batch.image_rows is None else image.select(batch.image_rows)

    def encode_image(self, images: Tensor) -> EncoderOutput:
        """Pictures to features: uint8 (B, 3, H, W) as read, or float already normalised."""
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

    def _decode(self, batch: Batch, memory: Tensor, mask: Tensor | None) -> tuple[DecoderOutput, Tensor]:
        """The one place where input and target are shifted: bos a b eos -> (bos a b) predicts (a b eos).

        Where another sentence of the batch is longer, eos is not fed either: whatever a decoder makes of what it is fed
        (a penalty), padding never changes it.
        """
        sentence, content = batch.target_tokens, batch.target_mask
        if sentence is None:
            sentence, content = batch.tokens, batch.mask
        assert sentence is not None
        assert content is not None
        over = ~content[:, 1:]
        inputs, labels = sentence[:, :-1].masked_fill(over, self.pad_id), sentence[:, 1:].masked_fill(over, IGNORE)
        return self._decoder().decode(inputs, memory, mask), labels


def _normalized(vectors: Tensor) -> Tensor:
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=-1)


def _mask_of(output: EncoderOutput) -> Tensor:
    if output.mask is not None:
        return output.mask
    return torch.ones(output.features.shape[:2], dtype=torch.bool, device=output.features.device)


def needs_of(losses: Mapping[str, Any]) -> frozenset[str]:
    """What a model must compute for these losses (their names as in the registry)."""
    return frozenset().union(*(registry.losses.get(name).requires for name in losses))  # type: ignore[attr-defined]


def build_model(config: Mapping[str, Any]) -> VisionLanguageModel:
    """Build a model from the mapping that YAML holds, Python passes and a checkpoint stores.

    Args:
        config: `image_encoder`, `text_encoder`, `decoder` (specs or None), `embed_dim` (256), `embed_dropout` (0),
            `memory` (['image']), `vocab_size`, `pad_id` (0), `plugins`; `losses`, where listed, decide which parts
            are built: one that no loss trains is left out, with a warning.

    Raises:
        SpecError: an unknown key, or parts that do not fit together.
    """
    for key in config:
        if key not in MODEL_KEYS:
            near = difflib.get_close_matches(key, MODEL_KEYS, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise registry.SpecError(f"The model has no option {key!r}.{guess} Its options: {', '.join(MODEL_KEYS)}.")
    registry.load_plugins(config.get("plugins") or ())
    memory = tuple(config.get("memory") or ("image",))
    specs = _wanted_parts(config, memory)
    given = {"pad_id": config.get("pad_id", 0)}
    if config.get("vocab_size") is not None:
        given["vocab_size"] = config["vocab_size"]
    image_spec, text_spec, decoder_spec = specs["image_encoder"], specs["text_encoder"], specs["decoder"]
    image_encoder = None if image_spec is None else registry.image_encoders.build(image_spec, **given)
    text_encoder = None if text_spec is None else registry.text_encoders.build(text_spec, **given)
    for what, encoder in (("image encoder", image_encoder), ("text encoder", text_encoder)):
        if encoder is not None and not isinstance(getattr(encoder, "dim", None), int):
            raise registry.SpecError(f"The {what} {type(encoder).__name__} must set self.dim, its width, to an int.")
    decoder = None
    if decoder_spec is not None:
        encoders: dict[str, Any] = {"image": image_encoder, "text": text_encoder}
        widths = [encoders[source].dim for source in memory]
        decoder = registry.decoders.build(decoder_spec, memory_dim=min(widths), **given)
    return VisionLanguageModel(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        decoder=decoder,
        embed_dim=config.get("embed_dim") or 256,
        memory=memory,
        embed_dropout=config.get("embed_dropout") or 0.0,
        pad_id=given["pad_id"],
    )


def _wanted_parts(config: Mapping[str, Any], memory: tuple[str, ...]) -> dict[str, Any]:
    specs = {key: config.get(key) for key in ("image_encoder", "text_encoder", "decoder")}
    if not set(memory) <= {"image", "text"} or len(set(memory)) < len(memory):
        raise registry.SpecError(f"memory lists 'image', 'text' or both; got {list(memory)}.")
    if config.get("losses"):
        needs = needs_of(config["losses"])
        _check_needs(specs, needs, config["losses"])
        reads_text = bool(EMBEDS & needs) or ("decoder" in needs and "text" in memory)
        reads_image = bool(EMBEDS & needs) or ("decoder" in needs and "image" in memory)
        wanted = {"image_encoder": reads_image, "text_encoder": reads_text, "decoder": "decoder" in needs}
        for part, keep in wanted.items():
            if specs[part] is not None and not keep:
                losses = list(config["losses"])
                warnings.warn(f"The {part} is left out: none of the losses {losses} trains it.", stacklevel=3)
                specs[part] = None
    if specs["decoder"] is not None:
        for source in memory:
            if specs[f"{source}_encoder"] is None:
                raise registry.SpecError(f"memory lists {source!r}, but the model has no {source}_encoder.")
    if specs["image_encoder"] is None and specs["text_encoder"] is None:
        raise registry.SpecError("The model has no encoder: give image_encoder, text_encoder or both.")
    return specs


def _check_needs(specs: Mapping[str, Any], needs: frozenset[str], losses: Mapping[str, Any]) -> None:
    if "decoder" in needs and specs["decoder"] is None:
        wanting = [name for name in losses if "decoder" in needs_of({name: {}})]
        raise registry.SpecError(
            f"The loss {wanting[0]!r} needs a decoder, and the model has none: add `decoder: {{name: transformer}}` "
            f"under `model:`, or take {wanting[0]!r} out of `losses:` for alignment only."
        )
    if EMBEDS & needs and (specs["image_encoder"] is None or specs["text_encoder"] is None):
        wanting = [name for name in losses if EMBEDS & needs_of({name: {}})]
        raise registry.SpecError(
            f"The loss {wanting[0]!r} aligns pictures and sentences: give both image_encoder and text_encoder, "
            f"or take {wanting[0]!r} out of `losses:` for captioning only."
        )
