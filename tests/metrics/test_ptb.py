"""The tokenizer's words were checked against the Java original; these made-up sentences are its output."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from velm.metrics import ptb
from velm.metrics.ptb import ptb_tokenize
from velm.metrics.tokenization import auto_tokenize

ORIGINAL = [  # (sentence, what pycocoevalcap's PTBTokenizer makes of it)
    ("A robot can't ride the dog's bike, isn't he?", "a robot ca n't ride the dog 's bike is n't he"),
    ("\"Hello,\" she said -- 'it's o'clock' ... don't!", "hello she said it 's o'clock do n't"),
    (
        "The U.S. flag at 5 p.m. near St. John's (a town)",
        "the u.s. flag at 5 p.m. near st. john 's -lrb- a town -rrb-",
    ),
    ("I'm gonna wanna cannot gotta lemme", "i 'm gon na wan na can not got ta lem me"),
    ("they're we've you'll he'd who'd've y'all", "they 're we 've you 'll he 'd who 'd 've y' all"),
    (
        "a t-shirt, well-known; black-and-white & co. 1/2 of",
        "a t-shirt well-known black-and-white & co. 1/2 of",
    ),
    ("3.5 and 1,000 $5 50% #3 10:30", "3.5 and 1,000 $ 5 50 % # 3 10:30"),
    ("a big one - runs… “quickly” ‘now’ — yes – no", "a big one runs quickly now yes no"),
    ("no. It is No. 5, and dogs' players'", "no it is no. 5 and dogs players"),
    ("café naïve über Zürich", "café naïve über zürich"),
    ("He left.Then came back,quickly", "he left.then came back quickly"),
    ("dog/cat and/or w/o 24/7", "dog/cat and/or w/o 24/7"),
    ("seven!! six?! five!?", "seven !! six ?! five !?"),
    (
        "visit http://www.example.com/a?b=c or mail me@x.org",
        "visit http://www.example.com/a?b=c or mail me@x.org",
    ),
    ("AT&T at&t b&w R&amp;B", "at&t at & t b & w r&b"),
    ("a dog.  the dog . on the sun.", "a dog the dog on the sun"),
    ("'tis o'brien 'em '90s 1990's", "'t is o'brien 'em '90s 1990 's"),
    ("[really] {x} #hashtag @user", "-lsb- really -rsb- -lcb- x -rcb- #hashtag @user"),
    ("", ""),
    (" .", ""),
    ("dog?cat what!no 3.5km 10:30am", "dog?cat what!no 3.5 km 10:30 am"),
    ("J'ai vu qu'elle s'ébroue, l'été c'est ab'cd ma'am", "j'ai vu qu'elle s ébroue l'été c'est ab cd ma'am"),
    ("एक काला कुत्ता दौड़ता है।", "एक काला कुत्ता दौड़ता है ।"),
    ("हिन्दी-अंग्रेज़ी कमल-कमल", "हिन्दी अंग्रेज़ी कमल-कमल"),
    ("สุนัขสีดำ กำลังวิ่ง", "สุนัขสีดำ กำลังวิ่ง"),
    ("كَلْبٌ أَسْوَدُ، يَرْكُضُ؟", "كَلْبٌ أَسْوَدُ ، يَرْكُضُ ؟"),
    ("כֶּלֶב שָׁחוֹר צה״ל", "כֶּלֶב שָׁחוֹר צה ״ ל"),
    ("কালো কুকুর ஒரு கருப்பு நாய் నల్ల కుక్క", "কালো কুকুর ஒரு கருப்பு நாய் నల్ల కుక్క"),
    ("một con chó đen đang chạy", "một con chó đen đang chạy"),
    ("一只黑色的狗在草地上奔跑。犬が走る", "一只黑色的狗在草地上奔跑 。 犬が走る"),
    ("검은 개가 달린다. собака бежит, 5½ m² 25°C", "검은 개가 달린다 собака бежит 5 1/2 m ² 25 ° c"),
    ("a dog \U0001f600 \u2600\ufe0f «été» l'été", "a dog \u2600 été l'été"),
    ("ខ្មែរ ಕಪ್ಪು", "ខ ម រ ಕಪ ಪ"),
]


@pytest.mark.parametrize(("sentence", "words"), ORIGINAL)
def test_words_are_those_of_the_original(sentence: str, words: str) -> None:
    assert ptb_tokenize(sentence) == words.split()


def test_equal_to_pycocoevalcap() -> None:
    module = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer",
        reason="pip install --no-deps pycocoevalcap to compare with it",
    )
    if not (Path(module.__file__).parent / module.STANFORD_CORENLP_3_4_1_JAR).exists():
        pytest.skip("pycocoevalcap has no CoreNLP")
    captions = [caption for caption, _ in ORIGINAL if caption]
    try:
        theirs = module.PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    except FileNotFoundError:
        pytest.skip("no Java")
    for i, caption in enumerate(captions):
        assert " ".join(ptb_tokenize(caption)) == " ".join(theirs[i][0].split()), caption


@pytest.mark.parametrize("sentence", [sentence for sentence, _ in ORIGINAL[:-4]])
def test_the_default_has_the_same_words_where_corenlp_reads_the_script(sentence: str) -> None:
    assert auto_tokenize(sentence) == ptb_tokenize(sentence)


def test_tokens_stay_as_they_are_when_cut_again() -> None:
    plain = "a robot ca n't ride the dog 's bike at 5 p.m."
    assert ptb_tokenize(plain) == plain.split()


def test_docstring_example() -> None:
    assert doctest.testmod(ptb).failed == 0
