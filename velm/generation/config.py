"""How a sentence is searched for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy search (as it stands), beam search (`num_beams` > 1) or sampling (`temperature` given).

    Args:
        max_length: most tokens to write, eos included, bos not; a sentence that has not ended by then is cut.
        min_length: fewest tokens, eos included.
        num_beams: hypotheses kept alive for each memory.
        length_penalty: a hypothesis scores sum_t log p(y_t) / length ** length_penalty, length in tokens with
            eos (Wu et al. 2016, arXiv 1609.08144, section 7, without its constants); 0 favours short sentences,
            1 compares the mean log p of a token, more favours long ones.
        temperature: sample from p ** (1 / temperature); None: take the best.
        top_k: sample among the k most probable tokens only.
        top_p: sample among the fewest most probable tokens that have this probability together
            (Holtzman et al. 2020, arXiv 1904.09751).
        no_repeat_ngram: no sequence of so many tokens is written twice; 0: whatever.
        num_return: sentences for each memory: the best beams, or independent samples.
    """

    max_length: int = 32
    min_length: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    no_repeat_ngram: int = 0
    num_return: int = 1

    def __post_init__(self) -> None:
        for name, least in (("max_length", 1), ("min_length", 0), ("num_beams", 1), ("no_repeat_ngram", 0)):
            self._at_least(name, least)
        for name in ("num_return", "top_k"):
            self._at_least(name, 1)
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is more than max_length {self.max_length}.")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} is not above 0; leave it out for greedy search.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1].")
        if self.temperature is None:
            for name in ("top_k", "top_p"):
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

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ValueError(f"{name} {value} is too small; it is at least {least}.")
