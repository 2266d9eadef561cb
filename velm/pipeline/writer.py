"""The decoder with its tokenizer: options in words, memories in, captions out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from velm.data.text.base import Tokenizer
from velm.errors import PipelineError
from velm.generation import Generated, GenerationConfig, compile_rules, generate, stream
from velm.model import VisionLanguageModel
from velm.outputs import EncoderOutput
from velm.pipeline.words import with_ids

__all__ = ["Caption", "Writer"]


@dataclass(frozen=True)
class Caption:
    """A sentence as written.

    Attributes:
        text: the sentence.
        score: what candidates are ordered by, higher is better: the sum of log p over length ** length_penalty; with
            `rerank_by_alignment` = w, plus w * cosine.
        log_prob: the sum of the decoder's own log p of the tokens, eos included.
        cosine: of the embeddings of sentence and image; None where they were not compared.
    """

    text: str
    score: float
    log_prob: float = -torch.inf
    cosine: float | None = None


class Writer:
    """Writes sentences for what is encoded.

    Args:
        model: one that has a decoder, on its device and in eval mode.
        tokenizer: the one it was trained with.
        max_length: longest sentence it was trained with, in tokens, bos and eos included.
    """

    def __init__(self, model: VisionLanguageModel, tokenizer: Tokenizer, max_length: int) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length

    def config(self, **options: Any) -> GenerationConfig:
        """How to write, given what was set, in words; unless set, a sentence may be as long as those trained with.

        Raises:
            PipelineError: an option is unknown or ill-chosen, or options contradict each other.
        """
        known = GenerationConfig.__dataclass_fields__
        if options.keys() - known:
            raise PipelineError(f"Unknown {sorted(options.keys() - known)}. Options of writing: {', '.join(known)}.")
        options = {"max_length": self.max_length - 1, **with_ids(self.tokenizer, options)}  # bos is not written
        try:
            config = GenerationConfig(**options)
            self._check(config)
        except ValueError as error:
            raise PipelineError(str(error)) from error
        return config

    @torch.inference_mode()
    def write(
        self, image: EncoderOutput | None, text: EncoderOutput | None, config: GenerationConfig
    ) -> list[list[Caption]]:
        """Sentences for a batch already encoded, `config.num_return` each, best first; '' where there is none."""
        assert self.model.decoder is not None
        memory, mask = self.model.memory(image, text)
        return self._worded(generate(self.model.decoder, memory, mask, config=config, **self._ids()))

    @torch.inference_mode()
    def stream(
        self, image: EncoderOutput | None, text: EncoderOutput | None, config: GenerationConfig
    ) -> Iterator[str]:
        """Pieces of the sentence for a batch of one, as they are decided; joined they are the sentence."""
        assert self.model.decoder is not None
        memory, mask = self.model.memory(image, text)
        tokens: list[int] = []
        said = ""
        for token in stream(self.model.decoder, memory, mask, config=config, **self._ids()):
            tokens.append(int(token))
            sentence = self.tokenizer.decode(tokens)
            if sentence.startswith(said) and not sentence.endswith("\ufffd"):  # half a character can wait
                if piece := sentence[len(said) :]:
                    yield piece
                said = sentence
        if rest := self.tokenizer.decode(tokens)[len(said) :]:
            yield rest

    def _ids(self) -> dict[str, Any]:
        own = self.tokenizer
        ids = {"bos_id": own.bos_id, "eos_id": own.eos_id, "pad_id": own.pad_id}
        return {**ids, "suppress": (own.pad_id, own.bos_id, own.unk_id)}

    def _check(self, config: GenerationConfig) -> None:
        """Refuse what no sentence could satisfy before any image is read, and name words, not ids."""
        size, decoder = self.tokenizer.vocab_size, self.model.decoder
        if config.num_beams > size:
            raise ValueError(f"num_beams {config.num_beams} is more than the vocabulary has tokens, {size}.")
        longest = None if decoder is None else decoder.max_length
        compile_rules(
            config,
            eos_id=self.tokenizer.eos_id,
            suppress=self._ids()["suppress"],
            vocab_size=size,
            limit=config.max_length if longest is None else min(config.max_length, longest),
            name=lambda ids: repr(self.tokenizer.decode(ids)),
        )

    def _worded(self, generated: Generated) -> list[list[Caption]]:
        sums = generated.log_probs.sum(dim=2).tolist()
        rows = zip(generated.tokens.tolist(), generated.scores.tolist(), sums, strict=True)
        return [
            [Caption(self.tokenizer.decode(t), s, p) for t, s, p in zip(*row, strict=True) if s > -torch.inf]
            or [Caption("", -torch.inf)]
            for row in rows
        ]


def reranked(found: list[Caption], cosines: list[float], weight: float, count: int) -> list[Caption]:
    """The `count` best of one image's candidates by score + weight * cosine."""
    both = [
        replace(c, score=c.score + weight * cosine, cosine=cosine) for c, cosine in zip(found, cosines, strict=True)
    ]
    return sorted(both, key=lambda caption: caption.score, reverse=True)[:count]
