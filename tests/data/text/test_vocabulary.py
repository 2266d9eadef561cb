"""Validation texts that the vocabulary does not know are announced before training."""

from __future__ import annotations

import warnings

import pytest

from velm.data.base import Record
from velm.data.text.bpe import ByteTokenizer
from velm.data.text.vocabulary import check_vocabulary
from velm.data.text.word import WordTokenizer


def records(*texts: str) -> list[Record]:
    return [Record(str(i), None, (text,)) for i, text in enumerate(texts)]


def trained(*texts: str, **options: object) -> WordTokenizer:
    tokenizer = WordTokenizer(**options)  # type: ignore[arg-type]
    tokenizer.train(texts)
    return tokenizer


def test_most_unknown_is_a_warning_that_says_what_to_set() -> None:
    chinese = records("一只黑狗在跑", "一只白猫")
    none = trained("一只黑猫在跑", "一只白狗", segment="none")
    with pytest.warns(
        UserWarning, match=r"100% of the tokens .*一只黑狗在跑.*data.tokenizer.segment=auto.*bpe or byte"
    ):
        assert check_vocabulary(chinese, none) == 1
    rare = trained(*["a a b b c c", "a b x y z"], min_frequency=3, max_size=20)
    with pytest.warns(UserWarning, match=r"min_frequency below 3; data.tokenizer.max_size above 20; a tokenizer with"):
        assert check_vocabulary(records("c x y z a"), rare) == pytest.approx(4 / 5)


def test_known_texts_and_tokenizers_without_unknown_words_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_vocabulary(records("一只黑狗在跑", "一只白猫"), trained("一只黑猫在跑", "一只白狗")) == 0
        assert check_vocabulary(records("a b"), trained("a c")) == 0.5
        assert check_vocabulary(records("犬"), ByteTokenizer()) == 0
        assert check_vocabulary(records(""), trained("a")) == 0
