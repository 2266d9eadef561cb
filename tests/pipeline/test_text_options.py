"""Phrases become the tokens they have inside a text, for every tokenizer."""

from __future__ import annotations

import pytest

from velm.data.text.bpe import BPETokenizer, ByteTokenizer
from velm.data.text.word import WordTokenizer
from velm.errors import PipelineError
from velm.pipeline.text_options import encode_text_options

TEXTS = ["a red circle", "a small blue square", "the dog, a red dog, runs"]


@pytest.fixture(params=["word", "bpe", "byte"])
def tokenizer(request):
    made = {"word": WordTokenizer, "bpe": BPETokenizer, "byte": ByteTokenizer}[request.param]()
    made.train(TEXTS)
    return made


def test_words_are_found_in_the_texts_that_have_them(tokenizer):
    options = {"forbidden": ["red dog"], "must_include": ["dog"], "answers": ["a red dog"], "prefix": "a red"}
    found = encode_text_options(tokenizer, {**options, "num_beams": 2})
    sentence = tokenizer.to_ids("a red dog")
    assert found["answers"] == [sentence]
    assert found["num_beams"] == 2
    assert sentence[: len(found["prefix"])] == found["prefix"]
    for ids in (found["forbidden"][0], found["must_include"][0]):
        assert sentence[-len(ids) :] == ids


def test_answers_and_prefixes_begin_behind_what_leads_a_text():
    tokenizer = ByteTokenizer()
    found = encode_text_options(tokenizer, {"answers": ["a dog"], "prefix": "a", "forbidden": ["red"]}, lead=" ")
    assert found["answers"] == [tokenizer.to_ids(" a dog")]
    assert found["prefix"] == tokenizer.to_ids(" a")
    assert found["forbidden"] == encode_text_options(tokenizer, {"forbidden": ["red"]})["forbidden"]


def test_a_tokenizer_that_marks_the_space_before_a_word():
    class Marking(WordTokenizer):
        """As GPT-2's: 'dog' at the beginning and ' dog' inside are different tokens."""

        def to_ids(self, text):
            ids = super().to_ids(text)
            return [ids[0] + 100, *ids[1:]] if not text.startswith(" ") else ids

    tokenizer = Marking()
    tokenizer.train(TEXTS)
    inside = tokenizer.to_ids(" dog")
    found = encode_text_options(tokenizer, {"forbidden": ["dog"], "must_include": ["dog"]})
    assert found["forbidden"] == [[inside[0] + 100], inside]
    assert found["must_include"] == [inside]


def test_none_means_absent_and_a_forbidden_word_may_be_unknown():
    tokenizer = WordTokenizer()
    tokenizer.train(TEXTS)
    assert encode_text_options(tokenizer, {"prefix": None, "forbidden": None, "answers": None, "top_k": None}) == {
        "top_k": None
    }
    assert encode_text_options(tokenizer, {"forbidden": ["zebra", "a zebra"]}) == {"forbidden": []}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": ""}, "prefix is ''; it takes text that is not empty, or is left out"),
        ({"prefix": "  "}, "prefix is '  '; it takes text"),
        ({"prefix": ["a"]}, r"prefix is \['a'\]; it takes text"),
        ({"prefix": "a zebra"}, "prefix: 'a zebra' has a word that is not in the model's vocabulary of"),
        ({"must_include": ["dog", "zebra"]}, "must_include: 'zebra' has a word that is not in the model's vocabulary"),
        ({"must_include": ["dog", ""]}, r"must_include\[1\] is ''; it takes text that is not empty"),
        ({"must_include": "dog"}, r"must_include is a list, also of one; got 'dog'. Write \['dog'\]"),
        ({"forbidden": [[3]]}, r"forbidden\[0\] is \[3\]; it takes text"),
        ({"answers": ["a zebra"]}, "answers: 'a zebra' has a word that is not in the model's vocabulary"),
    ],
    ids=str,
)
def test_errors(options, message):
    tokenizer = WordTokenizer()
    tokenizer.train(TEXTS)
    with pytest.raises(PipelineError, match=message):
        encode_text_options(tokenizer, options)
