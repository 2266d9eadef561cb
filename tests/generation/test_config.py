import pytest

from velm.generation import GenerationConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length 0 is too small; it is at least 1"),
        ({"min_length": -1}, "min_length -1 is too small; it is at least 0"),
        ({"num_beams": 0}, "num_beams 0 is too small"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram -1 is too small"),
        ({"num_return": 0}, "num_return 0 is too small"),
        ({"temperature": 1.0, "top_k": 0}, "top_k 0 is too small"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is more than max_length 8"),
        ({"temperature": 0.0}, "temperature 0.0 is not above 0"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p 0.0 is not in \(0, 1\]"),
        ({"top_k": 5}, "top_k 5 is for sampling; give a temperature too"),
        ({"top_p": 0.9}, "top_p 0.9 is for sampling"),
        ({"num_return": 3, "num_beams": 2}, "num_return 3 is more than num_beams 2"),
        ({"temperature": 1.0, "num_beams": 2}, "exclude each other"),
        ({"min_p": 0.1}, "min_p 0.1 is for sampling; give a temperature too"),
        ({"temperature": 1.0, "min_p": 1.5}, r"min_p 1.5 is not in \(0, 1\]"),
        ({"num_beam_groups": 0}, "num_beam_groups 0 is too small; it is at least 1"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beams 4 is not divisible by num_beam_groups 3"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups 2 without a diversity_penalty search the same thing"),
        ({"num_beams": 4, "diversity_penalty": 0.5}, "diversity_penalty 0.5 is between groups; give num_beam_groups"),
        ({"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.0}, "diversity_penalty 0.0 is not above 0"),
        ({"forbidden": ["dog"]}, r"forbidden\[0\] is 'dog'; it takes token ids. A pipeline takes text"),
        ({"prefix": "a dog"}, "prefix is 'a dog'; it takes token ids"),
        ({"must_include": [[3], []]}, "must_include has an empty phrase; each has at least one token"),
        ({"rerank_by_alignment": 1.0}, "rerank_by_alignment 1.0 has only one caption to choose from; give num_beams"),
        ({"num_beams": 2.5}, "num_beams is 2.5; it takes a whole number"),
        ({"max_length": True}, "max_length is True; it takes a whole number"),
        ({"min_length": None}, "min_length is None; it takes a whole number"),
        ({"temperature": "hot"}, "temperature is 'hot'; it takes a finite number"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; it takes a finite number"),
        ({"num_beams": 2, "rerank_by_alignment": float("inf")}, "rerank_by_alignment is inf; it takes a finite"),
        ({"answers": []}, "answers is empty, so that there is nothing to write"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**options)


def test_samples_need_no_beams():
    assert GenerationConfig(temperature=1.0, num_return=3).num_beams == 1


def test_phrases_become_tuples_each_once():
    config = GenerationConfig(forbidden=[[3, 4], [5], [3, 4]], answers=[[3]], prefix=[3])
    assert config.forbidden == ((3, 4), (5,))
    assert (config.answers, config.prefix, config.must_include) == (((3,),), (3,), ())
