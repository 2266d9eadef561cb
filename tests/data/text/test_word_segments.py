"""The word tokenizer in scripts without blanks, with combining marks, and for emoji."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from velm import segmentation
from velm.data.text import word
from velm.data.text.word import WordTokenizer
from velm.errors import ConfigError, MissingPackageError
from velm.registry import tokenizers

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
WORDS = {  # text: its number of words
    "一只黑色的狗在草地上奔跑": 12,
    "有3只狗，在手机上。": 10,
    "我 和 你": 5,  # a blank where none is implied is a word
    "犬が走る。カメラー": 9,
    "สุนัขสีดำ กำลังวิ่ง": 11,
    "ພາສາ ລາວ": 8,
    "ខ្មែរ ភាសា": 5,
    "एक काला कुत्ता दौड़ता है": 5,
    "क्\u200dष है": 2,
    "كَلْبٌ أَسْوَدُ يَرْكُضُ": 3,
    "می\u200cخواهم بروم": 2,
    "כֶּלֶב שָׁחוֹר": 2,
    "צה״ל בית־ספר": 2,
    "một con chó đen đang chạy": 6,
    "한국어 텍스트": 2,
    f"{FAMILY} \U0001f3d6\ufe0f": 3,
    "\U0001f436\U0001f436": 2,
    "\U0001f44d\U0001f3fd \U0001f1ef\U0001f1f5\U0001f1e9\U0001f1ea": 4,
    f"{SCOTLAND} 1\ufe0f\u20e3": 3,
    "a dog \U0001f600": 3,
    "狗 runs \U0001f436 跑": 6,
    "葛\U000e0100城市": 3,
}


def trained(*texts: str, **options: object) -> WordTokenizer:
    tokenizer = WordTokenizer(**options)  # type: ignore[arg-type]
    tokenizer.train(texts)
    return tokenizer


@pytest.mark.parametrize(("text", "count"), WORDS.items(), ids=range(len(WORDS)))
def test_text_comes_back(text: str, count: int) -> None:
    tokenizer = trained(*WORDS)
    assert len(tokenizer.words(text)) == count
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.length(text) == count + 2


def test_worker_processes_get_the_same_tokenizer() -> None:
    tokenizer = trained(*WORDS)
    assert [pickle.loads(pickle.dumps(tokenizer)).encode(text) for text in WORDS] == list(map(tokenizer.encode, WORDS))


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from(sorted({*"".join(WORDS), *" .,!?…—“”()é\u0301Ａ"})), max_size=20))
def test_normal_form_keeps_the_tokens_and_every_cluster(text: str) -> None:
    tokenizer = trained(text, "word 字 字")
    normal = tokenizer.normalise(text)
    assert tokenizer.decode(tokenizer.encode(text)) == normal
    assert tokenizer.words(normal) == tokenizer.words(text)
    assert normal.replace(" ", "") == tokenizer._splitter.normalizer.normalize_str(text).replace(" ", "")
    for cluster in regex.findall(r"(?=\p{Extended_Pictographic})\X", normal):
        assert cluster in tokenizer.words(normal) or regex.search(r"\w\p{M}*" + regex.escape(cluster), normal)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(max_codepoint=0x52F, exclude_categories=["Cs", "Cc", "Cn", "Mn"]), max_size=30))
def test_scripts_with_blanks_have_the_words_of_earlier_versions(text: str) -> None:
    assert WordTokenizer().words(text) == WordTokenizer(segment="none").words(text)


def test_a_state_of_an_earlier_version_keeps_its_words() -> None:
    options = {"lowercase": True, "min_frequency": 1, "max_size": None}
    old = WordTokenizer.from_state({"options": options, "words": ["dog", "一只黑色的狗", "\u200d", "."]})
    assert old.segment == "none"
    assert old.encode("一只黑色的狗 dog. 一") == [1, 5, 4, 7, 3, 2]
    assert old.encode("\u200d") == [1, 6, 2]
    assert old.decode([1, 5, 4, 7, 2]) == "一只黑色的狗 dog."
    again = WordTokenizer.from_state(json.loads(json.dumps(old.state())))
    assert (again.segment, again.state()) == ("none", old.state())


def test_a_blank_that_the_training_texts_never_have_is_left_out() -> None:
    tokenizer = trained("黑狗")
    assert tokenizer.unk_id not in tokenizer.encode("黑 狗")
    assert tokenizer.decode(tokenizer.encode("黑 狗")) == "黑狗"
    assert tokenizer.length("黑 狗") == len(tokenizer.encode("黑 狗"))


@pytest.mark.parametrize(
    ("segment", "package", "text", "expected"),
    [
        ("jieba", "jieba", "一只狗在 草地上。", "草地"),
        ("pythainlp", "pythainlp", "สุนัขสีดำ กำลังวิ่ง", "สุนัข"),
        ("mecab", "MeCab", "犬がカメラを見ている。", "カメラ"),
    ],
)
def test_words_by_a_dictionary(segment: str, package: str, text: str, expected: str) -> None:
    pytest.importorskip(package, reason="pip install '.[languages]'")
    tokenizer = trained(text, segment=segment)
    assert expected in tokenizer.words(text)
    assert len(tokenizer.words(text)) < len(WordTokenizer().words(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert WordTokenizer.from_state(tokenizer.state()).encode(text) == tokenizer.encode(text)


def test_a_missing_dictionary_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    segmentation.dictionary.cache_clear()
    word._pattern.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(MissingPackageError, match=r"by jieba needs a package .*pip install 'velm\[languages\]'"):
        WordTokenizer(segment="jieba")


def test_an_unknown_segment_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'segment' of the tokenizer 'word' takes .*auto.*none.*jieba"):
        tokenizers.build({"name": "word", "segment": "jeiba"})
