"""A model with its tokenizer and transform: captions, embeddings and similarities of images and texts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from velm.backbone import Backbone
from velm.data.base import Turn
from velm.data.batches.collate import pad_tokens
from velm.data.batches.lengths import truncate
from velm.data.images.prefetch import read_batches
from velm.data.images.transforms import EvalTransform
from velm.data.text.base import Tokenizer
from velm.errors import PipelineError
from velm.generation import GenerationConfig
from velm.inputs import ImageInput, as_list, checked_batch_size, checked_sources, checked_texts
from velm.model import VisionLanguageModel
from velm.outputs import EncoderOutput
from velm.pipeline.captioner import Caption, Captioner, reranked
from velm.pipeline.prompter import Prompter
from velm.precision import warn_if_emulated
from velm.prompt import Prompt


class Pipeline:
    """A model with its tokenizer and transform; `velm.load` makes one from a checkpoint.

    Images are paths, PIL images or uint8 arrays (H, W, 3), in lists; results are in the order of the list.
    Lists are processed in batches, so that memory does not grow with their length.

    Args:
        model: moved to the device and put into eval mode.
        tokenizer: the one it was trained with.
        transform: image to uint8 (3, H, W), as in validation.
        max_length: longest text in tokens, bos and eos included; longer ones are cut, with a warning.
        aligned: whether a loss trained the joint space; None: whether the model has both encoders.
        data: the data config of the training.
        logit_scale: learned inverse temperature of the cosines; None if no loss learned one.
        logit_bias: learned addend of the scaled cosines (SigLIP); None if the loss has none.
        tokenization: of captions in the metrics of the training, the default of `velm evaluate`.
        device: where to compute, e.g. 'cpu' or 'cuda'.
        precision: '32', the weights as they are; or 'bf16', weights and computation in bfloat16: half the memory, and
            about half the time on hardware that multiplies it (AMX, tensor cores). Results differ in the third digit,
            so a caption with nearly tied tokens may differ, and may depend on the batch.

    Raises:
        PipelineError: the device or the precision does not exist.
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
        logit_bias: float | None = None,
        tokenization: str = "auto",
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
        warn_if_emulated(self.device, precision, "precision 32")
        self.tokenizer, self.transform, self.max_length = tokenizer, transform, max_length
        self.aligned = model.aligned if aligned is None else model.aligned and aligned
        self.data, self.tokenization = data or {}, tokenization
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.prompter = Prompter(model.decoder, tokenizer, max_length)
        self.captioner = Captioner(self.model, tokenizer, max_length, self.prompter.lead)

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
        """The best caption of each image, of each text, or of each pair of them.

        Args:
            images: required if the decoder attends over the image.
            texts: required if the decoder reads a text: to translate, answer or summarise.
            batch_size: images or texts per batch.
            **options: fields of `velm.generation.GenerationConfig`: num_beams, max_length, temperature, ...; phrases
                as text: `prefix`, and the lists `forbidden`, `must_include`, `answers`.

        Raises:
            PipelineError: the model has no decoder, or an argument or option cannot be used.
            DataError: an image cannot be read.
        """
        captions = self.caption_candidates(images, texts, batch_size=batch_size, **options)
        return [candidates[0].text for candidates in captions]

    def caption_candidates(
        self,
        images: Sequence[ImageInput] | None = None,
        texts: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        **options: Any,
    ) -> list[list[Caption]]:
        """As `caption`, but `num_return` captions each, best first, with their scores."""
        self.require_decoder()
        config = self.generation_config(**options)
        image_list, text_list = checked_sources(self.model.reads, images, texts)
        encoded_images = None if image_list is None else self.encode_images(image_list, batch_size=batch_size)
        captions: list[list[Caption]] = []
        for start in range(0, len(image_list or text_list or ()), checked_batch_size(batch_size)):
            text, prompt = self.read_texts(None if text_list is None else text_list[start : start + batch_size])
            captions += self.write(None if encoded_images is None else next(encoded_images), text, config, prompt)
        return captions

    def stream_caption(self, image: ImageInput | None = None, text: str | None = None, **options: Any) -> Iterator[str]:
        """The caption of one image (or text, or both) in parts, each as soon as it is decided.

        Args:
            image: required if the decoder attends over the image.
            text: required if it attends over the text.
            **options: as of `caption`; greedy, or with a temperature.
        """
        self.require_decoder()
        config = self.stream_config(**options)
        images, texts = None if image is None else [image], None if text is None else [text]
        image_list, text_list = checked_sources(self.model.reads, images, texts)
        encoded_image = None if image_list is None else next(self.encode_images(image_list, batch_size=1))
        encoded_text, prompt = self.read_texts(text_list)
        return self.stream(encoded_image, encoded_text, config, prompt)

    def embed_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> Tensor:
        """Joint embeddings float (n, E) on the CPU, L2-normalised."""
        self.require_alignment()
        image_list = as_list(images, "images")
        batches = self.encode_images(image_list, batch_size=batch_size)
        return self._concatenated([self.embed_image(image) for image in batches])

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Joint embeddings float (n, E) on the CPU, L2-normalised."""
        self.require_alignment()
        text_list = checked_texts(texts)
        order = sorted(range(len(text_list)), key=lambda i: len(text_list[i]))  # similar lengths: little padding
        embeds = []
        for start in range(0, len(order), batch_size):
            text = self.encode_texts([text_list[i] for i in order[start : start + batch_size]])
            with torch.inference_mode():
                embeds.append(self.model.embed_text(text).cpu())
        in_order = self._concatenated(embeds)
        return torch.empty_like(in_order).index_copy_(0, torch.tensor(order, dtype=torch.long), in_order)

    def score(
        self,
        images: Sequence[ImageInput],
        texts: Sequence[str],
        *,
        kind: Literal["cosine", "logit", "probability"] = "cosine",
        batch_size: int = 64,
    ) -> Tensor:
        """How well each of n images matches each of m texts: float (n, m).

        Args:
            images, texts: see `embed_images` and `embed_texts`.
            kind: 'cosine'; 'logit', the cosine times the learned scale, plus the learned bias if there is one; or
                'probability': with a bias, that of each pair alone, the sigmoid of its logit (SigLIP); otherwise that
                of a text among the m given ones, a softmax over them (CLIP).
            batch_size: images per batch.

        Raises:
            PipelineError: the model has no joint space, or no loss learned a scale and `kind` is not 'cosine'.
        """
        if kind not in ("cosine", "logit", "probability"):
            raise PipelineError(f"Unknown kind of score {kind!r}; it is cosine, logit or probability.")
        cosines = self.embed_images(images, batch_size=batch_size) @ self.embed_texts(texts).T
        if kind == "cosine":
            return cosines
        if self.logit_scale is None:
            raise PipelineError(f"No loss of this model learned a scale of its cosines, so kind={kind!r} is undefined.")
        logits = self.logit_scale * cosines + (self.logit_bias or 0.0)
        if kind == "logit":
            return logits
        return logits.softmax(dim=-1) if self.logit_bias is None else logits.sigmoid()

    def encode_images(
        self, images: Sequence[Any], *, batch_size: int, transform: Callable[[Any], Tensor] | None = None
    ) -> Iterator[EncoderOutput]:
        """The image encoder's output batch by batch; threads read the next batch at the same time.

        Args:
            images: inputs of the transform.
            batch_size: images per batch.
            transform: image to uint8 (3, H, W); None: the pipeline's own.
        """
        for pixels in read_batches(images, transform or self.transform, checked_batch_size(batch_size)):
            yield self.encode_pixels(pixels)

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> EncoderOutput:
        """The image encoder's output of images that the transform has read, uint8 (B, 3, H, W)."""
        return self.model.encode_image(pixels.to(self.device))

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens int64 (B, T) and mask bool (B, T) on the device; texts beyond `max_length` are cut, with a warning."""
        ids = [self.tokenizer.encode(text) for text in texts]
        long = [len(tokens) for tokens in ids if len(tokens) > self.max_length]
        if long:
            warnings.warn(
                f"{len(long)} of {len(ids)} texts are longer than the {self.max_length} tokens the model was "
                f"trained with (the longest has {max(long)}); they are cut.",
                stacklevel=2,
            )
        tokens, mask = pad_tokens([truncate(each, self.max_length) for each in ids], self.tokenizer.pad_id)
        return tokens.to(self.device), mask.to(self.device)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> EncoderOutput:
        """The text encoder's output of one batch."""
        return self.model.encode_text(*self.tokenize(texts))

    def read_texts(
        self, texts: Sequence[str] | None, histories: Sequence[Sequence[Turn]] | None = None
    ) -> tuple[EncoderOutput | None, Prompt | None]:
        """What the decoder reads of texts: the text encoder's output, and the prompts; None for each that it does not.

        Args:
            texts: None: it reads none.
            histories: for each text, the earlier turns of its conversation.

        Raises:
            PipelineError: a text cannot stand in a prompt.
        """
        encoded = None if texts is None or "text" not in self.model.memory_sources else self.encode_texts(texts)
        prompt = None if texts is None else self.prompter(texts, histories)
        return encoded, None if prompt is None else prompt.map(lambda tensor: tensor.to(self.device))

    @torch.inference_mode()
    def memory(
        self, image: EncoderOutput | None, text: EncoderOutput | None = None, prompt: Prompt | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The decoder's memory of an encoded batch; a template without a place for a text needs no `prompt`."""
        output = image if image is not None else text
        if prompt is None and output is not None:
            prompt = self.instruction(len(output.pooled))
        return self.model.memory(image, text, prompt)

    def instruction(self, count: int) -> Prompt | None:
        """The prompts of `count` images where the template says the same of all; else None."""
        return None if "text" in self.model.reads else self.read_texts([""] * count)[1]

    def embed_image(self, image: EncoderOutput) -> Tensor:
        """Joint embedding of images already encoded, float (B, E), on the CPU."""
        with torch.inference_mode():
            return self.model.embed_image(image).cpu()

    def write(
        self,
        image: EncoderOutput | None,
        text: EncoderOutput | None,
        config: GenerationConfig,
        prompt: Prompt | None = None,
    ) -> list[list[Caption]]:
        """Captions of an encoded batch, `config.num_return` each, best first; see `read_texts` for text and prompt."""
        self.require_decoder()
        weight = config.rerank_by_alignment
        memory = self.memory(image, text, prompt)
        if weight is None:
            return self.captioner.captions(*memory, config)
        assert image is not None
        all_beams = replace(config, rerank_by_alignment=None)
        if config.temperature is None:
            all_beams = replace(all_beams, num_return=config.num_beams)
        captions = self.captioner.captions(*memory, all_beams)
        texts = [caption.text for candidates in captions for caption in candidates if caption.text]
        cosines = iter((self.embed_texts(texts)[:, None] @ self._repeated(image, captions)).flatten().tolist())
        by_caption = [[next(cosines) if caption.text else -1.0 for caption in candidates] for candidates in captions]
        return [reranked(*each, weight, config.num_return) for each in zip(captions, by_caption, strict=True)]

    def stream(
        self,
        image: EncoderOutput | None,
        text: EncoderOutput | None,
        config: GenerationConfig,
        prompt: Prompt | None = None,
    ) -> Iterator[str]:
        """The caption of one encoded image (or text, or both) in parts; the arguments are those of `write`."""
        self.require_decoder()
        return self.captioner.stream(*self.memory(image, text, prompt), config)

    def generation_config(self, **options: Any) -> GenerationConfig:
        """The generation config of options with phrases as text, checked against the model.

        Raises:
            PipelineError: an option is unknown or out of range, options contradict each other, or the model lacks the
                parts they need.
        """
        config = self.captioner.config(**options)
        if config.rerank_by_alignment is not None:
            self.require_alignment()
            if "image" not in self.model.memory_sources:
                raise PipelineError("rerank_by_alignment compares with the image, which this decoder does not see.")
        return config

    def stream_config(self, **options: Any) -> GenerationConfig:
        """As `generation_config`, of one text that is decided token by token."""
        config = self.generation_config(**options)
        if config.num_beams > 1 or config.num_return > 1:
            raise PipelineError("Beams and several samples are decided at the end only; stream greedily or one sample.")
        return config

    def backbone(
        self,
        *,
        out_channels: int | None = None,
        out_indices: Sequence[int] | None = None,
        trainable: bool = True,
    ) -> Backbone:
        """A copy of the image encoder as a module for detection and segmentation, images to a dict of maps.

        Args:
            out_channels, out_indices, trainable: as of `velm.backbone.Backbone`.

        Raises:
            ConfigError: the image encoder has no maps, or an option cannot be used.
            PipelineError: the model has no image encoder.
        """
        if self.model.image_encoder is None:
            raise PipelineError("This model has no image_encoder, so it has no backbone.")
        return Backbone(
            copy.deepcopy(self.model.image_encoder),
            image_size=self.transform.image_size,
            out_channels=out_channels,
            out_indices=out_indices,
            trainable=trainable,
        )

    def require_decoder(self) -> None:
        """Raise PipelineError if the model has no decoder."""
        if not self.writes:
            raise PipelineError(
                "This model has no decoder, so it cannot write captions: it was trained for alignment only. Train one "
                "with `decoder:` and `losses: {captioning: ...}`; embed_images, embed_texts and score work with this."
            )

    def require_alignment(self) -> None:
        """Raise PipelineError if no loss trained the joint space of the model."""
        if not self.aligned:
            raise PipelineError(
                "This model was not trained to align images with texts, so it has no embeddings to compare. "
                "Train one with image_encoder, text_encoder and `losses: {contrastive: ...}`; caption works with this."
            )

    def _repeated(self, image: EncoderOutput, captions: list[list[Caption]]) -> Tensor:
        """The image embedding of each caption that is not empty, float (captions, E, 1)."""
        counts = torch.tensor([sum(bool(caption.text) for caption in candidates) for candidates in captions])
        return self.embed_image(image).repeat_interleave(counts, dim=0)[:, :, None]

    def _concatenated(self, embeds: list[Tensor]) -> Tensor:
        return torch.cat(embeds) if embeds else torch.zeros(0, self.model.embed_dim)
