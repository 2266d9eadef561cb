"""A model with its tokenizer and transform: captions, embeddings and similarities of images and sentences."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from velm.data.batches.collate import pad_tokens
from velm.data.batches.samples import truncate
from velm.data.images.prefetch import read_batches
from velm.data.images.transforms import EvalTransform
from velm.data.text.base import Tokenizer
from velm.errors import PipelineError
from velm.generation import GenerationConfig
from velm.model import VisionLanguageModel
from velm.outputs import EncoderOutput
from velm.pipeline.inputs import ImageInput, listed, positive, sentences, sources
from velm.pipeline.writer import Caption, Writer, reranked

__all__ = ["Pipeline"]


class Pipeline:
    """A model with its tokenizer and transform; `velm.load` makes one from a checkpoint.

    Images are paths, PIL images or uint8 arrays (H, W, 3), in lists; results come in the order of the list.
    Work goes in batches, so that memory is bounded whatever the length of the list.

    Args:
        model: put on the device and into eval mode.
        tokenizer: the one it was trained with.
        transform: image to uint8 (3, H, W), as in validation.
        max_length: longest sentence in tokens, bos and eos included; longer ones are cut, with a warning.
        aligned: whether its embeddings were trained to match; None: whether it has any.
        data: the data config it was trained with.
        logit_scale: inverse temperature of its cosines; None where no loss learnt one.
        device: where to compute, e.g. 'cpu' or 'cuda'.
        precision: '32', the weights as they are; or 'bf16', the weights made bfloat16 and everything computed in it:
            half the memory, and about half the time on hardware that multiplies it (AMX, tensor cores). Results differ
            in the third digit, so a caption whose words are nearly tied may be another, and may depend on the batch.
    """

    def __init__(
        self,
        *,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        transform: EvalTransform,
        max_length: int,
        aligned: bool | None = None,
        data: dict[str, Any] | None = None,
        logit_scale: float | None = None,
        device: str | torch.device = "cpu",
        precision: Literal["32", "bf16"] = "32",
    ) -> None:
        if precision not in ("32", "bf16"):
            raise PipelineError(f"Unknown precision {precision!r}; it is '32' or 'bf16'.")
        try:
            self.device = torch.device(device)
            self.model = model.to(self.device, torch.bfloat16 if precision == "bf16" else None).eval()
        except (RuntimeError, AssertionError) as error:  # torch: no such device, or built without it
            raise PipelineError(f"Cannot compute on the device {device!r}: {str(error).splitlines()[0]}") from error
        self.tokenizer, self.transform, self.max_length = tokenizer, transform, max_length
        self.aligned = model.aligned if aligned is None else model.aligned and aligned
        self.data, self.logit_scale = data or {}, logit_scale
        self.writer = Writer(self.model, tokenizer, max_length)

    @property
    def writes(self) -> bool:
        """Whether the model has a decoder."""
        return self.model.decoder is not None

    def caption(
        self,
        images: Sequence[ImageInput] | None = None,
        texts: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        **options: Any,
    ) -> list[str]:
        """Write a sentence for each image, for each text, or for each pair of them.

        Args:
            images: images, where the decoder attends over the image.
            texts: sentences, where the decoder attends over the text: to be translated, answered, summed up.
            batch_size: images at a time.
            **options: fields of `velm.generation.GenerationConfig`: num_beams, max_length, temperature, ...; with
                words as text: `prefix`, and the lists `forbidden`, `must_include`, `answers`.
        """
        found = self.caption_candidates(images, texts, batch_size=batch_size, **options)
        return [candidates[0].text for candidates in found]

    def caption_candidates(
        self,
        images: Sequence[ImageInput] | None = None,
        texts: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        **options: Any,
    ) -> list[list[Caption]]:
        """As `caption`, but `num_return` sentences each, best first, with their scores."""
        self.require_decoder()
        config = self.generation_config(**options)
        image_list, read = sources(self.model.memory_sources, images, texts)
        seen = None if image_list is None else self.encode_images(image_list, batch_size=batch_size)
        found: list[list[Caption]] = []
        for start in range(0, len(image_list or read or ()), positive(batch_size)):
            text = None if read is None else self.encode_texts(read[start : start + batch_size])
            found += self.write(None if seen is None else next(seen), text, config)
        return found

    def stream_caption(self, image: ImageInput | None = None, text: str | None = None, **options: Any) -> Iterator[str]:
        """The sentence of one image (or text, or both) in pieces, each as soon as it is decided.

        Args:
            image: where the decoder attends over the image.
            text: where it attends over the text.
            **options: as of `caption`; greedy, or with a temperature.
        """
        self.require_decoder()
        config = self.generation_config(**options)
        if config.num_beams > 1 or config.num_return > 1:
            raise PipelineError("Beams and several samples are decided at the end only; stream greedily or one sample.")
        images, texts = None if image is None else [image], None if text is None else [text]
        image_list, read = sources(self.model.memory_sources, images, texts)
        seen = None if image_list is None else next(self.encode_images(image_list, batch_size=1))
        return self.writer.stream(seen, None if read is None else self.encode_texts(read), config)

    def embed_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Tensor:
        """Joint embeddings float (n, E) on the CPU, L2-normalised."""
        self.require_alignment()
        image_list = listed(images, "images")
        return self._joined(
            [self.embed_image(image) for image in self.encode_images(image_list, batch_size=batch_size)]
        )

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Joint embeddings float (n, E) on the CPU, L2-normalised."""
        self.require_alignment()
        read = sentences(texts)
        order = sorted(range(len(read)), key=lambda i: len(read[i]))  # alike in length: little padding
        embeds = []
        for start in range(0, len(order), batch_size):
            text = self.encode_texts([read[i] for i in order[start : start + batch_size]])
            with torch.inference_mode():
                embeds.append(self.model.embed_text(text).cpu())
        joined = self._joined(embeds)
        return torch.empty_like(joined).index_copy_(0, torch.tensor(order, dtype=torch.long), joined)

    def score(self, images: Sequence[ImageInput], texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Cosine similarity float (n, m) of each of n images with each of m texts."""
        return self.embed_images(images, batch_size=batch_size) @ self.embed_texts(texts).T

    def encode_images(
        self, images: Sequence[Any], *, batch_size: int, transform: Callable[[Any], Tensor] | None = None
    ) -> Iterator[EncoderOutput]:
        """The image encoder's output batch by batch; the next batch is read by threads meanwhile.

        Args:
            images: whatever the transform takes.
            batch_size: images at a time.
            transform: to uint8 (3, H, W), in place of the pipeline's own.
        """
        for pixels in read_batches(images, transform or self.transform, positive(batch_size)):
            with torch.inference_mode():
                encoded = self.model.encode_image(pixels.to(self.device))
            yield encoded

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens int64 (B, T) and mask bool (B, T) on the device; longer sentences are cut, with a warning."""
        ids = [self.tokenizer.encode(text) for text in texts]
        long = [len(tokens) for tokens in ids if len(tokens) > self.max_length]
        if long:
            warnings.warn(
                f"{len(long)} of {len(ids)} sentences are longer than the {self.max_length} tokens the model was "
                f"trained with (the longest has {max(long)}); they are cut.",
                stacklevel=2,
            )
        tokens, mask = pad_tokens([truncate(sentence, self.max_length) for sentence in ids], self.tokenizer.pad_id)
        return tokens.to(self.device), mask.to(self.device)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> EncoderOutput:
        """The text encoder's output of one batch."""
        return self.model.encode_text(*self.tokenize(texts))

    def embed_image(self, image: EncoderOutput) -> Tensor:
        """Joint embedding of images already encoded, float (B, E), on the CPU."""
        with torch.inference_mode():
            return self.model.embed_image(image).cpu()

    def write(
        self, image: EncoderOutput | None, text: EncoderOutput | None, config: GenerationConfig
    ) -> list[list[Caption]]:
        """Sentences for a batch already encoded, `config.num_return` each, best first."""
        weight = config.rerank_by_alignment
        if weight is None:
            return self.writer.write(image, text, config)
        assert image is not None
        everything = replace(config, rerank_by_alignment=None)
        if config.temperature is None:
            everything = replace(everything, num_return=config.num_beams)
        found = self.writer.write(image, text, everything)
        texts = [caption.text for candidates in found for caption in candidates if caption.text]
        cosines = iter((self.embed_texts(texts)[:, None] @ self._repeated(image, found)).flatten().tolist())
        judged = [[next(cosines) if caption.text else -1.0 for caption in candidates] for candidates in found]
        return [reranked(*each, weight, config.num_return) for each in zip(found, judged, strict=True)]

    def generation_config(self, **options: Any) -> GenerationConfig:
        """How to write, given what was set, with words as text.

        Raises:
            PipelineError: an option is unknown or ill-chosen, options contradict each other, or the model cannot do so.
        """
        config = self.writer.config(**options)
        if config.rerank_by_alignment is not None:
            self.require_alignment()
            if "image" not in self.model.memory_sources:
                raise PipelineError("rerank_by_alignment compares with the image, which this decoder does not see.")
        return config

    def require_decoder(self) -> None:
        """Raise PipelineError where the model cannot write."""
        if not self.writes:
            raise PipelineError(
                "This model has no decoder, so it cannot write captions: it was trained for alignment only. Train one "
                "with `decoder:` and `losses: {captioning: ...}`; embed_images, embed_texts and score work with this."
            )

    def require_alignment(self) -> None:
        """Raise PipelineError where the model has no embeddings to compare."""
        if not self.aligned:
            raise PipelineError(
                "This model was not trained to align images with sentences, so it has no embeddings to compare. "
                "Train one with image_encoder, text_encoder and `losses: {contrastive: ...}`; caption works with this."
            )

    def _repeated(self, image: EncoderOutput, found: list[list[Caption]]) -> Tensor:
        """Embeddings float (captions, E, 1), the image's for each of its candidates that says something."""
        counts = torch.tensor([sum(bool(caption.text) for caption in candidates) for candidates in found])
        return self.embed_image(image).repeat_interleave(counts, dim=0)[:, :, None]

    def _joined(self, embeds: list[Tensor]) -> Tensor:
        return torch.cat(embeds) if embeds else torch.zeros(0, self.model.image_projection.out_features)
