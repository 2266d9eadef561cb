"""The tokenizer's words were checked against the Java original; these made-up sentences are its output."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from velm.metrics import ptb
from velm.metrics.ptb import ptb_tokenize

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
]


@pytest.mark.parametrize(("sentence", "words"), ORIGINAL)
def test_words_are_those_of_the_original(sentence: str, words: str) -> None:
    assert ptb_tokenize(sentence) == words.split()


@pytest.mark.parametrize("sentence", [sentence for sentence, _ in ORIGINAL])
def test_equal_to_pycocoevalcap(sentence: str) -> None:
    module = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer",
        reason="pip install --no-deps pycocoevalcap to compare with it",
    )
    if not (Path(module.__file__).parent / module.STANFORD_CORENLP_3_4_1_JAR).exists():
        pytest.skip("pycocoevalcap has no CoreNLP")
    try:
        theirs = module.PTBTokenizer().tokenize({0: [{"caption": sentence}]})
    except FileNotFoundError:
        pytest.skip("no Java")
    assert " ".join(ptb_tokenize(sentence)) == theirs[0][0].strip()


def test_tokens_stay_as_they_are_when_cut_again() -> None:
    plain = "a robot ca n't ride the dog 's bike at 5 p.m."
    assert ptb_tokenize(plain) == plain.split()


def test_docstring_example() -> None:
    assert doctest.testmod(ptb).failed == 0
