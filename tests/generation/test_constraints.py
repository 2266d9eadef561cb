import pytest
import torch

from velm.generation.constraints import forbid_repeats

PAD, BOS, EOS = 0, 1, 2


@pytest.mark.parametrize("config", [{}, {"num_beams": 3}, {"temperature": 1.5}], ids=str)
def test_min_length(table, write, config):
    decoder = table()
    decoder.table[..., EOS] += 3.0
    found = write(decoder, torch.zeros(3, 2, 6), max_length=6, min_length=4, seed=0, **config)
    assert found.tokens[:, 0, :3].ne(EOS).all()
    assert found.tokens[:, 0, 3].eq(EOS).any()


def test_forbidden_repeats_by_hand():
    tokens = torch.tensor([[1, 2, 3, 1, 2], [1, 2, 1, 2, 1], [4, 4, 4, 4, 4]])

    def forbidden(size):
        result = forbid_repeats(torch.zeros(3, 6), tokens, size)
        return [row.isinf().nonzero().flatten().tolist() for row in result]

    assert forbidden(3) == [[3], [2], [4]]
    assert forbidden(2) == [[3], [2], [4]]
    assert forbidden(1) == [[1, 2, 3], [1, 2], [4]]
    assert forbidden(6) == [[], [], []]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "config", [{}, {"num_beams": 4, "num_return": 4}, {"temperature": 1.0, "num_return": 4}], ids=str
)
def test_no_ngram_twice(table, write, size, config):
    decoder = table()
    decoder.table[..., EOS] = -9.0
    found = write(decoder, torch.zeros(2, 2, 6), max_length=12, no_repeat_ngram=size, seed=0, **config)
    for row in found.tokens.flatten(0, 1).tolist():
        sentence = [token for token in row if token != PAD]
        ngrams = list(zip(*(sentence[i:] for i in range(size)), strict=False))
        assert len(ngrams) == len(set(ngrams))


def test_a_sentence_that_may_write_nothing_ends(table, write):
    found = write(table(), torch.zeros(1, 2, 6), no_repeat_ngram=1, min_length=9, max_length=9)
    assert found.tokens[0, 0].tolist()[3:] == [EOS]
    assert found.scores.isfinite().all()


def test_suppressed_token_is_unknown(table, write):
    with pytest.raises(ValueError, match="token 6 is not in the vocabulary of 6 tokens"):
        write(table(), torch.zeros(1, 2, 6), suppress=(PAD, 6))
