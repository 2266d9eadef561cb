"""Odd and repeated texts, and their tokens."""

from __future__ import annotations

import numpy as np
import pytest

from velm.data.base import Record
from velm.data.text.bpe import ByteTokenizer
from velm.data.text.word import WordTokenizer
from velm.doctor.texts import long_captions, odd_captions, read_texts, repeated_captions, special_tokens, unknown_words


def records(*texts: str, targets: tuple[str, ...] | None = None) -> list[Record]:
    return [Record(str(i), None, (text,), targets) for i, text in enumerate(texts)]


def trained(*texts: str) -> WordTokenizer:
    tokenizer = WordTokenizer()
    tokenizer.train(texts)
    return tokenizer


def read(*texts: str) -> dict:
    return {"train": read_texts(records(*texts), trained("a red dog runs on the grass"))}


CLEAN = ("a red dog", "the dog runs", "a dog on the grass")


def test_clean_texts_pass() -> None:
    splits = read(*CLEAN)
    findings = [
        long_captions(splits, 10),
        unknown_words(splits, trained("a dog")),
        *odd_captions(splits),
        repeated_captions(splits),
    ]
    assert {f.severity for f in findings} == {"ok"}


def test_texts_are_counted_with_their_targets() -> None:
    read = read_texts(records("a red cat", targets=("the dog",)), trained("a red dog runs on the grass"))
    assert (read.images, read.tokens, read.unknown, read.lengths.tolist()) == (1, 5, 1, [5, 4])


def test_cut_texts_are_counted() -> None:
    splits = read(*["a dog"] * 30, "a dog runs on the grass")
    few = long_captions(splits, 7)
    assert few.severity == "info"
    assert "max_length 7 cuts 1 of 31 (3.2%) texts; the longest has 8 tokens" in few.message
    assert "data.max_length=8 cuts none" in few.advice
    assert long_captions(splits, 3).severity == "warning"
    assert long_captions(splits, 8).severity == "ok"


def test_unknown_words_by_split() -> None:
    splits = {**read(*CLEAN), "val": read("a blue cat runs")["train"]}
    finding = unknown_words(splits, trained("a dog"))
    assert finding.severity == "warning"
    assert finding.message == "Unknown tokens: 0.0% of train, 50.0% of val."
    assert "data.tokenizer.name=bpe or byte" in finding.advice


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  ", "1 different texts are empty: train '  '"),
        ("x" * 1001, "are longer than 1,000 characters"),
        ("a \0 dog", "hold a NUL character"),
        ("caf� dog", "hold U+FFFD"),
    ],
)
def test_odd_texts_are_shown(text: str, words: str) -> None:
    (finding,) = odd_captions(read(*CLEAN, text))
    assert finding.severity == "warning"
    assert words in finding.message
    assert finding.advice


def test_one_text_for_many_images() -> None:
    finding = repeated_captions(read(*["a dog"] * 6, "a red dog"))
    assert finding.severity == "warning"
    assert "train: 6 of 7 (85.7%) images, 'a dog' for 6 of them" in finding.message
    assert repeated_captions(read("a dog", "a dog", "a red dog")).severity == "info"
    same = [Record("one", None, ("a dog",)) for _ in range(20)]  # twenty drawings of one scene
    assert repeated_captions({"train": read_texts(same, ByteTokenizer())}).severity == "ok"


def test_a_limit_reads_evenly() -> None:
    read = read_texts(records(*map(str, range(100))), ByteTokenizer(), limit=5)
    assert (read.images, sorted(read.by_text, key=int)) == (5, ["0", "25", "50", "74", "99"])
    assert isinstance(read.lengths, np.ndarray)


def test_special_tokens() -> None:
    assert special_tokens(ByteTokenizer()).severity == "ok"
    shared = ByteTokenizer()
    shared.pad_id = shared.eos_id
    assert "Special tokens share an id: pad 2, bos 1, eos 2, unk 3." in special_tokens(shared).message
    outside = ByteTokenizer()
    outside.unk_id = 900
    finding = special_tokens(outside)
    assert finding.severity == "error"
    assert "unk lies outside the vocabulary of 260" in finding.message
