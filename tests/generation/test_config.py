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
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**options)


def test_samples_need_no_beams():
    assert GenerationConfig(temperature=1.0, num_return=3).num_beams == 1
