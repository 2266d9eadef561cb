"""`velm.onnx.load`: a model exported to ONNX, with its tokenizer and transform, without torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from velm import registry
from velm.data.images.prefetch import read_batches
from velm.data.text.base import Tokenizer, truncate
from velm.errors import MissingPackageError, PipelineError
from velm.inputs import ImageInput, as_list, checked_batch_size, checked_sources, checked_texts
from velm.onnx.folder import TOKENIZER, TRANSFORM, DecoderConfig, OnnxConfig, read_folder
from velm.onnx.images import ArrayTransform
from velm.onnx.search import Cache, Found, SearchOptions, search, search_options

__all__ = ["Caption", "OnnxPipeline", "load"]


def load(folder: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> OnnxPipeline:
    """The model of a folder that `velm export --format onnx` wrote.

    Args:
        folder: whole and unchanged.
        threads: of a computation; None: onnxruntime's own choice, one for each core.
        providers: of onnxruntime, the first that can is taken; None: the CPU.

    Raises:
        CheckpointError: the folder is not whole, or is none of these.
        MissingPackageError: onnxruntime is not installed.
    """
    folder = Path(folder).expanduser()
    config = read_folder(folder)
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError("velm.onnx runs models by onnxruntime: pip install 'velm[onnx]'.") from error
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # weights stored in int8 are unpacked once
    options.add_session_config_entry("session.x64quantprecision", "1")  # no overflow of int8 sums without VNNI
    chosen = list(providers or ("CPUExecutionProvider",))
    graphs = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options, chosen) for name in config.graphs}
    stored = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    cls: Any = registry.tokenizers.get(stored["name"])
    transform = ArrayTransform(**json.loads((folder / TRANSFORM).read_text(encoding="utf-8")))
    return OnnxPipeline(config, graphs, cls.from_state(stored["state"]), transform)


@dataclass(frozen=True)
class Caption:
    """A text with its score, by which captions are ordered, and the sum of its tokens' log p, in nats."""

    text: str
    score: float
    log_prob: float


class OnnxPipeline:
    """Captions, embeddings and similarities of images and texts, with the methods of `velm.Pipeline`.

    Arrays of numpy take the place of tensors.

    Attributes:
        aligned: whether there are embeddings.
        writes: whether the model has a decoder.
        reads: what the decoder reads: 'image', 'text' or both.
    """

    def __init__(
        self, config: OnnxConfig, graphs: dict[str, Any], tokenizer: Tokenizer, transform: ArrayTransform
    ) -> None:
        self.config, self.graphs = config, graphs
        self.tokenizer, self.transform, self.max_length = tokenizer, transform, config.max_length
        self.aligned, self.writes, self.reads = config.aligned, config.decoder is not None, tuple(config.memory)
        self.logit_scale, self.logit_bias = config.logit_scale, config.logit_bias

    def embed_images(self, images: Sequence[ImageInput], *, batch_size: int = 64) -> np.ndarray:
        """Joint embeddings float32 (n, E), L2-normalised.

        Raises:
            PipelineError: the model has no joint space.
            DataError: an image cannot be read.
        """
        self._require_alignment()
        return self._joined([each["embeds"] for each in self.encode_images(as_list(images, "images"), batch_size)])

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> np.ndarray:
        """Joint embeddings float32 (n, E), L2-normalised."""
        self._require_alignment()
        checked = checked_texts(texts)
        order = sorted(range(len(checked)), key=lambda i: len(checked[i]))  # similar lengths: little padding
        parts = [order[start : start + batch_size] for start in range(0, len(order), checked_batch_size(batch_size))]
        in_order = self._joined([self.encode_texts([checked[i] for i in part])["embeds"] for part in parts])
        embeds = np.empty_like(in_order)
        embeds[order] = in_order
        return embeds

    def score(
        self,
        images: Sequence[ImageInput],
        texts: Sequence[str],
        *,
        kind: Literal["cosine", "logit", "probability"] = "cosine",
        batch_size: int = 64,
    ) -> np.ndarray:
        """How well each of n images matches each of m texts, float32 (n, m): see `velm.Pipeline.score`."""
        if kind not in ("cosine", "logit", "probability"):
            raise PipelineError(f"Unknown kind of score {kind!r}; it is cosine, logit or probability.")
        cosines: np.ndarray = self.embed_images(images, batch_size=batch_size) @ self.embed_texts(texts).T
        if kind == "cosine":
            return cosines
        if self.logit_scale is None:
            raise PipelineError(f"No loss of this model learned a scale of its cosines, so kind={kind!r} is undefined.")
        logits = np.float32(self.logit_scale) * cosines + np.float32(self.logit_bias or 0.0)
        if kind == "logit":
            return logits
        if self.logit_bias is not None:
            return 1 / (1 + np.exp(-logits))
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

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
            texts: required if it attends over the text.
            batch_size: images or texts per batch.
            **options: max_length, num_beams, length_penalty, num_return, see `velm.generation.GenerationConfig`.

        Raises:
            PipelineError: the model has no decoder, or an argument or option cannot be used.
            DataError: an image cannot be read.
        """
        return [each[0].text for each in self.caption_candidates(images, texts, batch_size=batch_size, **options)]

    def caption_candidates(
        self,
        images: Sequence[ImageInput] | None = None,
        texts: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        **options: Any,
    ) -> list[list[Caption]]:
        """As `caption`, but `num_return` captions each, best first, with their scores."""
        decoder = self._decoder()
        chosen = search_options(self.max_length - 1, self.tokenizer.vocab_size, **options)
        image_list, text_list = checked_sources(self.reads, images, texts)
        encoded = None if image_list is None else self.encode_images(image_list, batch_size)
        captions: list[list[Caption]] = []
        for start in range(0, len(image_list or text_list or ()), checked_batch_size(batch_size)):
            inputs: dict[str, np.ndarray] = {}
            if encoded is not None:
                inputs["image_features"] = next(encoded)["features"]
            if text_list is not None:
                text = self.encode_texts(text_list[start : start + batch_size])
                inputs |= {"text_features": text["features"], "text_mask": text["mask"]}
            captions += [self._decoded(found) for found in self._search(decoder, inputs, chosen)]
        return captions

    def encode_images(self, images: Sequence[Any], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of image.onnx, batch by batch; threads read the next batch at the same time."""
        for pixels in read_batches(images, self.transform, checked_batch_size(batch_size), np.stack):
            yield self._run("image", {"images": pixels})

    def encode_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The outputs of text.onnx and the mask of the tokens, bool (B, T)."""
        ids = [self.tokenizer.encode(text) for text in texts]
        long = [len(tokens) for tokens in ids if len(tokens) > self.max_length]
        if long:
            warnings.warn(
                f"{len(long)} of {len(ids)} texts are longer than the {self.max_length} tokens the model was "
                f"trained with (the longest has {max(long)}); they are cut.",
                stacklevel=2,
            )
        ids = [truncate(each, self.max_length) for each in ids]
        tokens = np.full((len(ids), max(map(len, ids))), self.tokenizer.pad_id, dtype=np.int64)
        mask = np.zeros(tokens.shape, dtype=bool)
        for row, each in enumerate(ids):
            tokens[row, : len(each)], mask[row, : len(each)] = each, True
        return {**self._run("text", {"tokens": tokens, "mask": mask}), "mask": mask}

    def _search(
        self, decoder: DecoderConfig, inputs: dict[str, np.ndarray], options: SearchOptions
    ) -> list[list[Found]]:
        state = self._run("start", inputs)
        rows = len(next(iter(inputs.values())))
        cache = Cache({n: state[n] for n in decoder.memory}, {n: state[n] for n in decoder.past}, np.arange(rows))
        step = self.graphs["step"]

        def one_step(token: np.ndarray, cache: Cache) -> tuple[np.ndarray, Cache]:
            logits, *past = step.run(None, {"token": token, **cache.memory, **cache.past})
            return logits, Cache(cache.memory, dict(zip(decoder.past, past, strict=True)), cache.owners)

        limit = options.max_length if decoder.max_length is None else min(options.max_length, decoder.max_length)
        start, end = decoder.start_id, decoder.eos_id
        return search(
            one_step, cache, options=options, limit=limit, start_id=start, eos_id=end, suppress=decoder.suppress
        )

    def _decoded(self, found: list[Found]) -> list[Caption]:
        texts = [Caption(self.tokenizer.decode(each.tokens), each.score, each.log_prob) for each in found]
        return texts or [Caption("", -np.inf, -np.inf)]

    def _run(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self.graphs[graph]
        return dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True))

    def _joined(self, embeds: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros((0, self.config.embed_dim), np.float32), *embeds])

    def _require_alignment(self) -> None:
        if not self.aligned:
            raise PipelineError(
                "This model was not trained to align images with texts, so it has no embeddings to compare."
            )

    def _decoder(self) -> DecoderConfig:
        if self.config.decoder is None:
            raise PipelineError(
                "This model has no decoder, so it cannot write captions: it was trained for alignment only."
            )
        return self.config.decoder
