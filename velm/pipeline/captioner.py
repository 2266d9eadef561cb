"""The decoder with its tokenizer: generation options with text, from memories to captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from velm.data.text.base import Tokenizer
from velm.errors import PipelineError
from velm.generation import Constraints, Generated, GenerationConfig, generate, stream
from velm.model import VisionLanguageModel
from velm.pipeline.text_options import encode_text_options


@dataclass(frozen=True)
class Caption:
    """A generated text.

    Attributes:
        text: without special tokens.
        score: captions are ordered by it, higher is better: the sum of log p over length ** length_penalty; with
            `rerank_by_alignment` = w, plus w * cosine.
        log_prob: the sum of the decoder's log p of the tokens, eos included, in nats.
        cosine: of the embeddings of caption and image; None unless reranked.
    """

    text: str
    score: float
    log_prob: float = -torch.inf
    cosine: float | None = None

    @property
    def numbers(self) -> dict[str, float | None]:
        """score, log_prob and, if it has one, cosine, for JSON; None for an infinite one: no caption was found."""
        numbers = {"score": self.score, "log_prob": self.log_prob}
        if self.cosine is not None:
            numbers["cosine"] = self.cosine
        return {name: value if isfinite(value) else None for name, value in numbers.items()}


class Captioner:
    """Generates captions from a decoder's memories.

    Args:
        model: on its device and in eval mode.
        tokenizer: the one it was trained with.
        max_length: longest text of the training in tokens, bos and eos included.
        lead: what stands before each text that it writes (see `Template.lead`).
    """

    def __init__(self, model: VisionLanguageModel, tokenizer: Tokenizer, max_length: int, lead: str = "") -> None:
        self.model, self.tokenizer, self.max_length, self.lead = model, tokenizer, max_length, lead
        self._constraints: Constraints | None = None

    def config(self, **options: Any) -> GenerationConfig:
        """The config of options with text; `max_length` defaults to the longest text of the training.

        Rules that no text can satisfy are refused here, before any image is read.

        Raises:
            PipelineError: an option is unknown or out of range, or options contradict each other.
        """
        known = GenerationConfig.__dataclass_fields__
        if options.keys() - known:
            raise PipelineError(f"Unknown {sorted(options.keys() - known)}. Options of writing: {', '.join(known)}.")
        options = {
            "max_length": self.max_length - 1,
            **encode_text_options(self.tokenizer, options, self.lead),
        }  # without bos
        try:
            config = GenerationConfig(**options)
            if config.num_beams > (size := self.tokenizer.vocab_size):
                raise ValueError(f"num_beams {config.num_beams} is more than the vocabulary has tokens, {size}.")
            if self.model.decoder is not None:
                self.constraints(config)
        except ValueError as error:
            raise PipelineError(str(error)) from error
        return config

    def constraints(self, config: GenerationConfig) -> Constraints:
        """The compiled rules of a config; those of the last config are kept."""
        assert self.model.decoder is not None
        device = self.model.decoder.output_projection.weight.device
        compiled = self._constraints
        if compiled is None or compiled.config != config or compiled.suppress.device != device:
            compiled = self._constraints = Constraints(
                config,
                self.model.decoder,
                eos_id=self.tokenizer.eos_id,
                suppress=self.token_ids()["suppress"],
                device=device,
                name=lambda ids: repr(self.tokenizer.decode(ids)),
            )
        return compiled

    @torch.inference_mode()
    def captions(self, memory: Tensor, mask: Tensor | None, config: GenerationConfig) -> list[list[Caption]]:
        """Captions of a decoder's memories, `config.num_return` each, best first; '' where none was found."""
        return self._decoded(self.generate(memory, mask, config))

    def generate(self, memory: Tensor, mask: Tensor | None, config: GenerationConfig) -> Generated:
        """The tokens of a decoder's memories, see `velm.generation.generate`."""
        assert self.model.decoder is not None
        return generate(self.model.decoder, memory, mask, **self._search_options(config))

    @torch.inference_mode()
    def stream(self, memory: Tensor, mask: Tensor | None, config: GenerationConfig) -> Iterator[str]:
        """The caption of one memory in parts, as soon as they are decided; their join is the caption."""
        assert self.model.decoder is not None
        tokens: list[int] = []
        yielded = ""
        for token in stream(self.model.decoder, memory, mask, **self._search_options(config)):
            tokens.append(int(token))
            caption = self.tokenizer.decode(tokens)
            if caption.startswith(yielded) and not caption.endswith("\ufffd"):  # wait for the rest of a character
                if part := caption[len(yielded) :]:
                    yield part
                yielded = caption
        if rest := self.tokenizer.decode(tokens)[len(yielded) :]:
            yield rest

    def _search_options(self, config: GenerationConfig) -> dict[str, Any]:
        return {"config": config, "constraints": self.constraints(config), **self.token_ids()}

    def token_ids(self) -> dict[str, Any]:
        """`bos_id`, `eos_id` and `pad_id`, and the ids to `suppress`, which are never written."""
        own = self.tokenizer
        ids = {"bos_id": own.bos_id, "eos_id": own.eos_id, "pad_id": own.pad_id}
        size = self.model.decoder.output_projection.out_features if self.model.decoder is not None else own.vocab_size
        special = [token for token in (own.pad_id, own.bos_id, own.unk_id) if token < size]
        return {**ids, "suppress": (*special, *range(own.vocab_size, size))}  # of an imported vocabulary: unknown ids

    def _decoded(self, generated: Generated) -> list[list[Caption]]:
        sums = generated.log_probs.sum(dim=2).tolist()
        rows = zip(generated.tokens.tolist(), generated.scores.tolist(), sums, strict=True)
        return [
            [Caption(self.tokenizer.decode(t), s, p) for t, s, p in zip(*row, strict=True) if s > -torch.inf]
            or [Caption("", -torch.inf)]
            for row in rows
        ]


def reranked(captions: list[Caption], cosines: list[float], weight: float, count: int) -> list[Caption]:
    """The `count` best captions of one image by score + weight * cosine."""
    both = [
        replace(c, score=c.score + weight * cosine, cosine=cosine) for c, cosine in zip(captions, cosines, strict=True)
    ]
    return sorted(both, key=lambda caption: caption.score, reverse=True)[:count]
