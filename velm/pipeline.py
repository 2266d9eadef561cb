"""A trained model at work: pictures and sentences in, captions, embeddings and similarities out. No Lightning."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from velm.checkpoint import build_from_checkpoint, build_tokenizer, read_checkpoint
from velm.data.collate import pad_tokens
from velm.data.items import cut
from velm.data.reading import read_batches
from velm.data.tokenizers import Tokenizer
from velm.data.transforms import EvalTransform, transform_from_config
from velm.generation import Generated, GenerationConfig, generate
from velm.model import EMBEDS, VisionLanguageModel, needs_of
from velm.outputs import EncoderOutput
from velm.registry import PluginError, SpecError, load_plugins

__all__ = ["Caption", "Pipeline", "PipelineError", "load"]

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


class PipelineError(SpecError):
    """The model cannot do what was asked, or was asked in the wrong form; the message says what to do."""


@dataclass(frozen=True)
class Caption:
    """A sentence as written; `score` is the sum of log p over length ** length_penalty, higher is likelier."""

    text: str
    score: float


class Pipeline:
    """A model with its tokenizer and transform; `velm.load` makes one from a checkpoint.

    Pictures are paths, PIL images or uint8 arrays (H, W, 3), in lists; results come in the order of the list.
    Work goes in batches, so that memory is bounded whatever the length of the list.

    Args:
        model: put on the device and into eval mode.
        tokenizer: the one it was trained with.
        transform: picture to uint8 (3, H, W), as in validation.
        max_length: longest sentence in tokens, bos and eos included; longer ones are cut, with a warning.
        aligned: whether its embeddings were trained to match; None: whether it has any.
        data: the data config it was trained with.
        logit_scale: inverse temperature of its cosines; None where no loss learnt one.
        device: where to compute, e.g. 'cpu' or 'cuda'.
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
    ) -> None:
        try:
            self.device = torch.device(device)
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # torch: no such device, or built without it
            raise PipelineError(f"Cannot compute on the device {device!r}: {str(error).splitlines()[0]}") from error
        self.tokenizer, self.transform, self.max_length = tokenizer, transform, max_length
        self.aligned = model.aligned if aligned is None else model.aligned and aligned
        self.data, self.logit_scale = data or {}, logit_scale

    @property
    def writes(self) -> bool:
        """Whether the model has a decoder."""
        return self.model.decoder is not None

    def caption(
        self,
        images: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        **options: Any,
    ) -> list[str]:
        """Write a sentence for each picture, for each text, or for each pair of them.

        Args:
            images: pictures, where the decoder attends over the image.
            texts: sentences, where the decoder attends over the text: to be translated, answered, summed up.
            batch_size: pictures at a time.
            **options: fields of `velm.generation.GenerationConfig`: num_beams, max_length, temperature, ...
        """
        found = self.caption_candidates(images, texts, batch_size=batch_size, **options)
        return [candidates[0].text for candidates in found]

    def caption_candidates(
        self,
        images: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        **options: Any,
    ) -> list[list[Caption]]:
        """As `caption`, but `num_return` sentences each, best first, with their scores."""
        self.require_decoder()
        config = self.generation_config(**options)
        pictures, sentences = self._sources(images, texts)
        seen = None if pictures is None else self.encode_images(pictures, batch_size=batch_size)
        found: list[list[Caption]] = []
        for start in range(0, len(pictures or sentences or ()), _positive(batch_size)):
            text = None if sentences is None else self.encode_texts(sentences[start : start + batch_size])
            found += self.write(None if seen is None else next(seen), text, config)
        return found

    def embed_images(self, images: Sequence[Picture], *, batch_size: int = 64) -> Tensor:
        """Joint embeddings float (n, E) on the CPU, L2-normalised."""
        self.require_alignment()
        pictures = _listed(images, "images")
        return self._joined([self.embed_image(image) for image in self.encode_images(pictures, batch_size=batch_size)])

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Joint embeddings float (n, E) on the CPU, L2-normalised."""
        self.require_alignment()
        sentences = _sentences(texts)
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # alike in length: little padding
        embeds = []
        for start in range(0, len(order), batch_size):
            text = self.encode_texts([sentences[i] for i in order[start : start + batch_size]])
            with torch.inference_mode():
                embeds.append(self.model.embed_text(text).cpu())
        joined = self._joined(embeds)
        return torch.empty_like(joined).index_copy_(0, torch.tensor(order, dtype=torch.long), joined)

    def score(self, images: Sequence[Picture], texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Cosine similarity float (n, m) of each of n pictures with each of m texts."""
        return self.embed_images(images, batch_size=batch_size) @ self.embed_texts(texts).T

    def encode_images(self, images: Sequence[Any], *, batch_size: int) -> Iterator[EncoderOutput]:
        """The image encoder's output batch by batch; the next batch is read by threads meanwhile."""
        for pixels in read_batches(images, self.transform, _positive(batch_size)):
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
        tokens, mask = pad_tokens([cut(sentence, self.max_length) for sentence in ids], self.tokenizer.pad_id)
        return tokens.to(self.device), mask.to(self.device)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> EncoderOutput:
        """The text encoder's output of one batch."""
        return self.model.encode_text(*self.tokenize(texts))

    def embed_image(self, image: EncoderOutput) -> Tensor:
        """Joint embedding of pictures already encoded, float (B, E), on the CPU."""
        with torch.inference_mode():
            return self.model.embed_image(image).cpu()

    def write(
        self, image: EncoderOutput | None, text: EncoderOutput | None, config: GenerationConfig
    ) -> list[list[Caption]]:
        """Sentences for a batch already encoded, `config.num_return` each, best first."""
        assert self.model.decoder is not None
        tokenizer = self.tokenizer
        with torch.inference_mode():
            memory, mask = self.model.memory(image, text)
            generated = generate(
                self.model.decoder,
                memory,
                mask,
                bos_id=tokenizer.bos_id,
                eos_id=tokenizer.eos_id,
                pad_id=tokenizer.pad_id,
                config=config,
                suppress=(tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id),
            )
        return self._worded(generated)

    def generation_config(self, **options: Any) -> GenerationConfig:
        """How to write, given what was set; unless set, a sentence may be as long as those trained with."""
        known = GenerationConfig.__dataclass_fields__
        if options.keys() - known:
            raise PipelineError(f"Unknown {sorted(options.keys() - known)}. Options of writing: {', '.join(known)}.")
        try:
            return GenerationConfig(**{"max_length": self.max_length - 1, **options})  # bos is not written
        except ValueError as error:
            raise PipelineError(str(error)) from error

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
                "This model was not trained to align pictures with sentences, so it has no embeddings to compare. "
                "Train one with image_encoder, text_encoder and `losses: {contrastive: ...}`; caption works with this."
            )

    def _sources(
        self, images: Sequence[Picture] | None, texts: Sequence[str] | None
    ) -> tuple[list[Picture] | None, list[str] | None]:
        wanted = self.model.memory_sources
        given = tuple(name for name, value in (("image", images), ("text", texts)) if value is not None)
        if set(given) != set(wanted):
            named = {"image": "images=[...]", "text": "texts=[...]"}
            raise PipelineError(
                f"The decoder attends over {' and '.join(wanted)}: give {' and '.join(named[w] for w in wanted)}; "
                f"got {' and '.join(named[g] for g in given) or 'nothing'}."
            )
        pictures = None if images is None else _listed(images, "images")
        sentences = None if texts is None else _sentences(texts)
        if pictures is not None and sentences is not None and len(pictures) != len(sentences):
            raise PipelineError(f"One text a picture: got {len(pictures)} images and {len(sentences)} texts.")
        return pictures, sentences

    def _worded(self, generated: Generated) -> list[list[Caption]]:
        tokens, scores = generated.tokens.tolist(), generated.scores.tolist()
        return [
            [Caption(self.tokenizer.decode(t), s) for t, s in zip(*row, strict=True) if s > -torch.inf]
            or [Caption("", -torch.inf)]
            for row in zip(tokens, scores, strict=True)
        ]

    def _joined(self, embeds: list[Tensor]) -> Tensor:
        return torch.cat(embeds) if embeds else torch.zeros(0, self.model.image_projection.out_features)


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    ema: bool = True,
    plugins: Sequence[str] = (),
    image_size: int | None = None,
) -> Pipeline:
    """A pipeline from a checkpoint: no Lightning, no pretrained weights, no code from the file.

    Args:
        path: of a .ckpt that `velm fit` wrote.
        device: where to compute, e.g. 'cpu' or 'cuda'.
        ema: the average of the weights, where training kept one; False: the weights as trained.
        plugins: modules or .py files whose decorators register parts, where the stored ones have moved.
        image_size: side of the square that pictures become, in pixels; None: as in validation. Random crops make
            things larger in training than they are, which somewhat larger pictures make up for afterwards
            (Touvron et al. 2019, arXiv 1906.06423).

    Raises:
        CheckpointError: the file cannot be used; the message says why.
    """
    load_plugins(plugins)
    checkpoint = read_checkpoint(path)
    transform = checkpoint.transform if image_size is None else {**checkpoint.transform, "image_size": image_size}
    return Pipeline(
        model=build_from_checkpoint(checkpoint, ema=ema),
        tokenizer=build_tokenizer(checkpoint),
        transform=transform_from_config(transform),
        max_length=checkpoint.max_length,
        aligned=_trained_to_align(checkpoint.config),
        data=checkpoint.data,
        logit_scale=checkpoint.logit_scale,
        device=device,
    )


def _trained_to_align(config: dict[str, Any]) -> bool:
    """A translator with memory [image, text] has both encoders, but no loss that made their embeddings meet."""
    try:
        return not config.get("losses") or bool(EMBEDS & needs_of(config["losses"]))
    except (SpecError, PluginError):  # somebody else's loss that is not here: its word cannot be had
        return True


def _listed(items: Any, name: str) -> list[Any]:
    if isinstance(items, str | bytes | os.PathLike | Image.Image) or (isinstance(items, np.ndarray) and items.ndim < 4):
        raise PipelineError(f"{name} is a list, also of one; got a single {type(items).__name__}. Write [{name[:-1]}].")
    return list(items)


def _sentences(texts: Any) -> list[str]:
    sentences = _listed(texts, "texts")
    for i, text in enumerate(sentences):
        if not isinstance(text, str) or not text.strip():
            raise PipelineError(f"texts[{i}] is {text!r}; it takes a sentence that is not empty.")
    return sentences


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise PipelineError(f"batch_size {batch_size} is too small; it is at least 1.")
    return batch_size
