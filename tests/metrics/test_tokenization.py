"""Tokenizations of captions by name; BLEU and CIDEr-D of languages against sacrebleu's and pycocoevalcap's figures."""

from __future__ import annotations

import doctest
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velm import metrics, segmentation
from velm.errors import ConfigError, MissingPackageError
from velm.metrics import tokenization
from velm.metrics.ptb import ptb_tokenize
from velm.metrics.tokenization import TOKENIZATIONS, auto_tokenize, tokenize_by

CAPTIONS = {  # language: hypotheses, one reference each
    "zh": (
        ["一只棕色的狗在草地上奔跑。", "两个孩子坐在桌子旁边", "3个人在iPhone手机前"],
        ["一只黑色的狗在草地上奔跑。", "两个小孩坐在一张桌子旁边", "3个人看着iPhone手机"],
    ),
    "ja": (
        ["茶色の犬が草の上を走る。", "子供が二人テーブルに座っている", "赤いカメラーを見る"],
        ["黒い犬が草の上を走っている。", "二人の子供がテーブルに座っている", "赤いカメラを見ている"],
    ),
    "th": (
        ["สุนัขสีดำ กำลังวิ่ง บน สนามหญ้า วันนี้", "เด็กสองคน นั่งอยู่", "แมวสีขาว"],
        ["สุนัขสีน้ำตาล กำลังวิ่ง บน สนามหญ้า วันนี้", "เด็กสองคน นั่งอยู่ ที่โต๊ะ", "แมวสีดำ"],
    ),
    "hi": (
        ["एक काला कुत्ता घास पर दौड़ता है", "दो बच्चे मेज़ के पास बैठे हैं", "एक सफ़ेद बिल्ली"],
        ["एक भूरा कुत्ता घास पर दौड़ता है", "दो छोटे बच्चे मेज़ के पास बैठे हैं", "एक काली बिल्ली"],
    ),
    "ar": (
        ["كَلْبٌ أَسْوَدُ يَرْكُضُ فِي العُشْبِ اليَوْمَ", "وَلَدَانِ يَجْلِسَانِ قُرْبَ المَائِدَةِ", "قِطَّةٌ بَيْضَاءُ"],
        ["كَلْبٌ بُنِّيٌّ يَرْكُضُ فِي العُشْبِ اليَوْمَ", "وَلَدَانِ صَغِيرَانِ يَجْلِسَانِ قُرْبَ المَائِدَةِ", "قِطَّةٌ سَوْدَاءُ"],
    ),
}
NAMES = {
    "zh": ["zh", "char", "auto", "jieba"],
    "ja": ["ja-mecab", "char", "auto", "mecab"],
    "th": ["char", "auto", "pythainlp"],
    "hi": ["13a", "char", "auto"],
    "ar": ["13a", "char", "auto"],
}
PACKAGES = {"jieba": "jieba", "ja": "MeCab", "ja-mecab": "MeCab", "mecab": "MeCab", "pythainlp": "pythainlp"}


def require(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason="pip install '.[languages]'")


@pytest.mark.parametrize(("language", "name"), [(key, name) for key, names in NAMES.items() for name in names])
def test_figures_are_those_of_the_field_on_the_same_tokens(language: str, name: str) -> None:
    """BLEU-4 is sacrebleu's, BLEU-1 to 4 and CIDEr-D pycocoevalcap's."""
    require(name)
    hypotheses, right = CAPTIONS[language]
    references = [[caption] for caption in right]
    split = tokenize_by(name)
    ours = metrics.caption_metrics(hypotheses, references, tokenize=name)
    cut = [" ".join(split(caption)) for caption in hypotheses], [" ".join(split(caption)) for caption in right]
    assert 0 < ours["caption/bleu4"] < 1
    sacrebleu = pytest.importorskip("sacrebleu", reason="pip install '.[languages]'")
    theirs = sacrebleu.corpus_bleu(cut[0], [cut[1]], tokenize="none", smooth_method="none")
    assert ours["caption/bleu4"] == pytest.approx(theirs.score / 100, abs=1e-6)
    if name in ("zh", "char", "13a", "ja-mecab"):
        named = sacrebleu.corpus_bleu(hypotheses, [right], tokenize=name, smooth_method="none")
        assert named.score == pytest.approx(theirs.score)
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="pip install --no-deps pycocoevalcap")
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    given = {i: [text] for i, text in enumerate(cut[1])}, {i: [text] for i, text in enumerate(cut[0])}
    assert ours["caption/cider"] == pytest.approx(cider.Cider().compute_score(*given)[0], abs=1e-9)
    expected = bleu.Bleu(4).compute_score(*given, verbose=0)[0]
    assert [ours[f"caption/bleu{n}"] for n in range(1, 5)] == pytest.approx(expected, abs=1e-9)


MIXED = st.text(
    st.one_of(st.characters(max_codepoint=0x2FFFF, exclude_categories=["Cs"]), st.sampled_from("狗,.-3a &;"))
)


@settings(max_examples=200, deadline=None)
@given(MIXED)
def test_own_zh_char_and_13a_are_sacrebleus(text: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu.metrics", reason="pip install '.[languages]'")
    for name in ("zh", "char", "13a"):
        assert tokenize_by(name)(text) == sacrebleu.BLEU(tokenize=name).tokenizer(text).split()


@pytest.mark.parametrize("text", CAPTIONS["ja"][0])
def test_own_ja_is_sacrebleus(text: str) -> None:
    require("ja")
    sacrebleu = pytest.importorskip("sacrebleu.metrics", reason="pip install '.[languages]'")
    assert tokenize_by("ja")(text) == sacrebleu.BLEU(tokenize="ja-mecab").tokenizer(text).split()


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("一只黑狗 Runs, 3次。", ["一", "只", "黑", "狗", "runs", "3", "次", "。"]),
        ("犬がカメラ", ["犬", "が", "カ", "メ", "ラ"]),
        ("ស្វា ពណ៌", ["ស្វា", "ពណ៌"]),
        ("ಕಪ್ಪು ನಾಯಿ", ["ಕಪ್ಪು", "ನಾಯಿ"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("a dog \U0001f468\u200d\U0001f467\u2600\ufe0f!", ["a", "dog", "\U0001f468\u200d\U0001f467", "\u2600\ufe0f"]),
        ("cafe\u0301", ["café"]),
    ],
    ids=range(7),
)  # fmt: skip
def test_auto_reads_what_corenlp_cannot(caption: str, words: list[str]) -> None:
    assert auto_tokenize(caption) == words != ptb_tokenize(caption)


def test_captions_of_emoji_and_of_punctuation_have_finite_metrics() -> None:
    emoji, marks = "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3d6\ufe0f \U0001f44d\U0001f3fd", ["!!!", "...", ""]
    scores = metrics.caption_metrics([emoji, *marks], [[emoji], *([mark] for mark in marks)])
    assert all(math.isfinite(value) for value in scores.values())
    assert metrics.bleu([emoji], [[emoji]])[:3] == pytest.approx([1, 1, 1])


def test_one_wrong_character_of_chinese_is_no_wrong_caption() -> None:
    hypothesis, reference = ["一只棕色的狗在草地上奔跑"], [["一只黑色的狗在草地上奔跑"]]
    assert metrics.bleu(hypothesis, reference)[0] == pytest.approx(11 / 12)
    assert metrics.bleu(hypothesis, reference, tokenize="ptb")[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", TOKENIZATIONS)
def test_every_name_is_a_tokenization(name: str) -> None:
    try:
        split = tokenize_by(name)
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert split("a b") == ["a", "b"]
    assert tokenize_by(str.split) == str.split


def test_unknown_and_missing_names_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"No tokenization 'jeiba' \(metrics.tokenize\). Did you mean 'jieba'\?.*13a"):
        metrics.bleu(["a"], [["a"]], tokenize="jeiba")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingPackageError, match=r"metrics.tokenize=intl is by sacrebleu.*'velm\[languages\]'"):
        tokenize_by("intl")
    segmentation.dictionary.cache_clear()
    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(MissingPackageError, match=r"by mecab needs a package .*'velm\[languages\]'"):
        tokenize_by("ja")


def test_docstring_example() -> None:
    assert doctest.testmod(tokenization).failed == 0
