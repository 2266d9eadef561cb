"""The rules of a config: contradictions are refused before decoding, the others hold at every step."""

import pytest
import torch

from tests.generation.conftest import TableDecoder
from velm.generation import GenerationConfig
from velm.generation.constraints import Constraints, forbid_repeats
from velm.generation.phrases import Phrases
from velm.generation.trie import Trie

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


def test_a_text_that_may_write_nothing_ends(table, write):
    found = write(table(), torch.zeros(1, 2, 6), no_repeat_ngram=1, min_length=9, max_length=9)
    assert found.tokens[0, 0].tolist()[3:] == [EOS]
    assert found.scores.isfinite().all()


def test_suppressed_token_is_unknown(table, write):
    with pytest.raises(ValueError, match="token 6 is not in the vocabulary of 6 tokens"):
        write(table(), torch.zeros(1, 2, 6), suppress=(PAD, 6))


def compiled(limit=8, name=repr, **options):
    config = GenerationConfig(max_length=limit, **options)
    return Constraints(config, TableDecoder(16), eos_id=EOS, suppress=(PAD, BOS), name=name).rules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"must_include": [[3, 4]], "forbidden": [[4]]}, r"must_include \(3, 4\) holds \(4,\), which is forbidden"),
        ({"prefix": [3, 4], "forbidden": [[3, 4]]}, r"prefix \(3, 4\) holds \(3, 4\), which is forbidden"),
        ({"answers": [[3], [5, 4]], "forbidden": [[4]]}, r"answers \(5, 4\) holds \(4,\), which is forbidden"),
        ({"limit": 3, "answers": [[3], [3, 4, 5]]}, r"answer \(3, 4, 5\) has 4 tokens with eos; at most 3 are written"),
        ({"answers": [[3]], "min_length": 3}, r"answer \(3,\) has 2 tokens with eos; min_length asks for 3"),
        ({"answers": [[3], [4]], "prefix": [5]}, r"None of the 2 answers begins with the prefix \(5,\)"),
        ({"answers": [[3], [4]], "must_include": [[5]]}, r"None of the 2 answers .* holds what must be included: \(5,"),
        ({"limit": 2, "prefix": [3, 4]}, r"prefix \(3, 4\) has 2 tokens and leaves no room to end: at most 2 tokens"),
        ({"limit": 4, "must_include": [[3, 4], [5, 6]]}, r"needs 5 tokens with the prefix and eos; at most 4 are wri"),
        ({"limit": 4, "must_include": [[5, 6]], "prefix": [3, 4]}, "needs 5 tokens with the prefix and eos"),
        ({"must_include": [[16]]}, "must_include: token 16 is not in the vocabulary of 16 tokens"),
        ({"forbidden": [[-1]]}, "forbidden: token -1 is not in the vocabulary"),
        ({"must_include": [[3, EOS]]}, r"must_include \(3, 2\) holds token 2, which is never written as a word"),
        ({"forbidden": [[3, EOS]]}, r"forbidden \(3, 2\) holds token 2, which is never written as a word"),
        ({"prefix": [PAD]}, r"prefix \(0,\) holds token 0, which is never written"),
        ({"answers": [[BOS]]}, r"answers \(1,\) holds token 1, which is never written"),
        ({"must_include": [[i] for i in range(3, 14)], "limit": 20}, "must_include has 11 phrases; it takes up to 10"),
    ],
    ids=str,
)
def test_contradictions(options, message):
    with pytest.raises(ValueError, match=message):
        compiled(**options)


def test_what_only_the_forbidden_could_join_is_refused():
    """3 and 4 must come, may not touch, and there is no other word to stand between them."""
    config = GenerationConfig(max_length=8, must_include=[[3], [4]], forbidden=[[3, 4], [4, 3], [5]])
    with pytest.raises(ValueError, match="cannot be written without something that is forbidden"):
        Constraints(config, TableDecoder(), eos_id=EOS, suppress=(PAD, BOS))


def test_messages_name_words():
    with pytest.raises(ValueError, match="must_include dog holds dog, which is forbidden"):
        compiled(must_include=[[3]], forbidden=[[3]], name=lambda tokens: "dog")


def test_overlapping_phrases_need_less_room():
    assert isinstance(compiled(limit=4, must_include=[[3, 4], [4, 5]]), Phrases)
    with pytest.raises(ValueError, match="needs 4 tokens"):
        compiled(limit=3, must_include=[[3, 4], [4, 5]])
    assert isinstance(compiled(limit=4, prefix=[7, 3], must_include=[[3, 4]]), Phrases)


def test_answers_left_to_choose_from():
    rules = compiled(answers=[[3, 4], [3, 5], [6]], prefix=[3], must_include=[[5]])
    assert isinstance(rules, Trie)
    assert rules.tokens.tolist() == [3, 5, EOS]
    assert compiled() is None
    assert compiled(prefix=[3]) is None


def test_the_decoders_own_limit_counts(table, write):
    with pytest.raises(ValueError, match="needs 4 tokens with the prefix and eos; at most 3 are written"):
        write(table(max_length=3), torch.zeros(1, 2, 6), must_include=[[3], [4], [5]])
