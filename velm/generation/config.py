"""The options of text generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Tokens = Sequence[int]
_COUNTS = ("max_length", "min_length", "num_beams", "num_beam_groups", "top_k", "no_repeat_ngram", "num_return")
_NUMBERS = ("diversity_penalty", "length_penalty", "temperature", "top_p", "min_p", "rerank_by_alignment")


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy search (the defaults), beam search (`num_beams` > 1) or sampling (with a `temperature`).

    Args:
        max_length: most tokens of a text, eos included, bos not; longer texts are cut.
        min_length: fewest tokens, eos included.
        num_beams: live hypotheses per memory.
        num_beam_groups: groups of beams; each is a beam search of its own, penalised for repeating the tokens of
            earlier groups at the same step (Vijayakumar et al. 2016, arXiv 1610.02424).
        diversity_penalty: cost of a token, in nats, per beam of an earlier group that continues with it at the same
            step; it steers the search and is not part of a score.
        length_penalty: a hypothesis scores sum_t log p(y_t) / length ** length_penalty, length in tokens with
            eos (Wu et al. 2016, arXiv 1609.08144, section 7, without its constants); 0 favours short texts,
            1 compares the mean log p of a token, larger values favour long texts.
        temperature: sample from p ** (1 / temperature); None: search for the best.
        top_k: sample among the k most probable tokens.
        top_p: sample among the fewest most probable tokens whose probabilities sum to this
            (Holtzman et al. 2020, arXiv 1904.09751).
        min_p: sample among the tokens at least this fraction as probable as the most probable one
            (Nguyen et al. 2024, arXiv 2407.01082).
        no_repeat_ngram: no n-gram of this size occurs twice; 0: no rule. Dropped where `prefix`, `answers` and
            `must_include` leave no other token.
        prefix: tokens that every text begins with; their log p counts.
        forbidden: phrases (token sequences) that do not occur.
        must_include: phrases that all occur, anywhere; the text ends in time. Beams are allocated to hypotheses by how
            much is missing (Post and Vilar 2018, arXiv 1804.06609); a single beam postpones the phrases.
        answers: the only possible texts, without eos; None: any text.
        num_return: texts per memory: the best beams, or independent samples.
        rerank_by_alignment: for a pipeline whose model also aligns: order all beams (or samples) by score plus this
            times the cosine of caption and image; None: by score.
    """

    max_length: int = 32
    min_length: int = 0
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float | None = None
    length_penalty: float = 1.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    no_repeat_ngram: int = 0
    prefix: Tokens = ()
    forbidden: Sequence[Tokens] = ()
    must_include: Sequence[Tokens] = ()
    answers: Sequence[Tokens] | None = None
    num_return: int = 1
    rerank_by_alignment: float | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            self._check_number(name, whole=True)
        for name in _NUMBERS:
            self._check_number(name, whole=False)
        for name in ("min_length", "no_repeat_ngram"):
            self._at_least(name, 0)
        for name in ("max_length", "num_beams", "num_beam_groups", "num_return", "top_k"):
            self._at_least(name, 1)
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is more than max_length {self.max_length}.")
        self._check_groups()
        self._check_sampling()
        self._set_phrases()

    def _check_number(self, name: str, *, whole: bool) -> None:
        value = getattr(self, name)
        if value is None and self.__dataclass_fields__[name].default is None:
            return
        kind = int if whole else int | float
        if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}; it takes a {'whole' if whole else 'finite'} number.")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ValueError(f"{name} {value} is too small; it is at least {least}.")

    def _check_groups(self) -> None:
        if self.num_beams % self.num_beam_groups:
            raise ValueError(
                f"num_beams {self.num_beams} is not divisible by num_beam_groups {self.num_beam_groups}; "
                "every group has the same number of beams."
            )
        if self.diversity_penalty is None:
            if self.num_beam_groups > 1:
                raise ValueError(
                    f"num_beam_groups {self.num_beam_groups} without a diversity_penalty search the same thing "
                    f"{self.num_beam_groups} times; give one, such as 0.5."
                )
        elif not self.diversity_penalty > 0:
            raise ValueError(f"diversity_penalty {self.diversity_penalty} is not above 0.")
        elif self.num_beam_groups == 1:
            raise ValueError(f"diversity_penalty {self.diversity_penalty} is between groups; give num_beam_groups too.")

    def _check_sampling(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} is not above 0; leave it out for greedy search.")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} {value} is not in (0, 1].")
        if self.temperature is None:
            for name in ("top_k", "top_p", "min_p"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} {getattr(self, name)} is for sampling; give a temperature too.")
            if self.num_return > self.num_beams:
                raise ValueError(
                    f"num_return {self.num_return} is more than num_beams {self.num_beams}; "
                    "search with more beams, or give a temperature to sample."
                )
        elif self.num_beams > 1:
            raise ValueError(
                f"temperature {self.temperature} (sampling) and num_beams {self.num_beams} exclude each other; "
                "leave one of them out. Several samples: num_return."
            )
        if self.rerank_by_alignment is not None and max(self.num_beams, self.num_return) == 1:
            raise ValueError(
                f"rerank_by_alignment {self.rerank_by_alignment} has only one caption to choose from; give num_beams, "
                "or a temperature and num_return."
            )

    def _set_phrases(self) -> None:
        """Convert all phrases to tuples of ids, without duplicates."""
        object.__setattr__(self, "prefix", _ids("prefix", self.prefix))
        for name in ("forbidden", "must_include", "answers"):
            value = getattr(self, name)
            if value is not None:
                phrases = tuple(dict.fromkeys(_ids(f"{name}[{i}]", phrase) for i, phrase in enumerate(value)))
                if () in phrases:
                    raise ValueError(f"{name} has an empty phrase; each has at least one token.")
                object.__setattr__(self, name, phrases)
        if self.answers == ():
            raise ValueError("answers is empty, so that there is nothing to write; leave it out to write freely.")


def _ids(name: str, tokens: Tokens) -> tuple[int, ...]:
    if not all(isinstance(token, int) for token in tokens):
        raise ValueError(f"{name} is {tokens!r}; it takes token ids. A pipeline takes text: pipeline.caption(...).")
    return tuple(tokens)
