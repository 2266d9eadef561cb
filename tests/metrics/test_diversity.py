"""How different, how long and how new captions are: by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velm.metrics.diversity import distinct_captions, distinct_n, diversity_of_words, mean_length, novelty

SENTENCES = st.lists(st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join), min_size=1, max_size=8)


def test_distinct() -> None:
    assert distinct_n(["a dog a dog", "a cat"], 1) == pytest.approx(3 / 6)
    assert distinct_n(["a dog a dog", "a cat"], 2) == pytest.approx(3 / 4)
    assert distinct_n(["a"], 2) == 0
    assert distinct_captions(["A dog.", "a dog", "a cat", "a cow"]) == 0.75
    with pytest.raises(ValueError, match="n 0 is below 1"):
        distinct_n(["a"], 0)


def test_length_counts_words_and_no_punctuation() -> None:
    assert mean_length(["A dog runs.", "a cat"]) == 2.5
    assert mean_length([]) == 0


def test_novelty_by_hand() -> None:
    assert novelty(["A dog.", "a cat", "a cow", "a cow"], ["a dog", "the cat"]) == 0.75
    assert novelty(["A dog."], ["a dog"], tokenize=str.split) == 1
    with pytest.raises(ValueError, match="There are no captions"):
        novelty([], ["a"])


@settings(deadline=None)
@given(SENTENCES, SENTENCES)
def test_novelty_is_a_share_that_more_training_never_raises(hypotheses: list[str], training: list[str]) -> None:
    share = novelty(hypotheses, training)
    assert 0 <= novelty(hypotheses, training + hypotheses[:1]) <= share <= 1
    assert novelty(hypotheses, hypotheses) == 0
    assert novelty(hypotheses, iter(training)) == share


@settings(deadline=None)
@given(SENTENCES)
def test_diversity_of_words_equals_the_functions(hypotheses: list[str]) -> None:
    assert diversity_of_words([sentence.split() for sentence in hypotheses]) == {
        "caption/distinct": distinct_captions(hypotheses, tokenize=str.split),
        "caption/distinct1": distinct_n(hypotheses, 1, tokenize=str.split),
        "caption/distinct2": distinct_n(hypotheses, 2, tokenize=str.split),
        "caption/length": mean_length(hypotheses, tokenize=str.split),
    }
