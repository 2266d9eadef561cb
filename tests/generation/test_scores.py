import pytest
import torch

from velm.generation import GenerationConfig
from velm.generation.phrases import Phrases
from velm.generation.scores import (
    BLOCK,
    best,
    best_by_need,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    largest,
    log_sum_exp,
)

P = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]])


def kept(log_probs):
    return log_probs.isfinite()[0].nonzero().flatten().tolist()


def test_best_by_hand():
    totals = torch.tensor([[1.0, -0.5]])
    scores = torch.tensor([[[-1.0, -4.0, -2.0], [-1.5, 0.0, -8.5]]])
    parents, words, added = best(totals, scores, 4)
    assert parents.tolist() == [[0, 1, 0, 1]]
    assert words.tolist() == [[0, 1, 2, 0]]
    assert added.tolist() == [[-1.0, 0.0, -2.0, -1.5]]
    assert best(totals, scores, 99)[0].shape == (1, 6)
    for count, expected in ((1, [[0]]), (2, [[0, 2]])):  # one hypothesis
        assert best(totals[:, :1], scores[:, :1], count)[1].tolist() == expected


@pytest.mark.parametrize("rows", [0, 1, 4, 11])
def test_log_sum_exp_by_blocks_of_rows_is_that_of_all(rows):
    scores = torch.randn(rows, 30, generator=torch.Generator().manual_seed(0))
    scores[:1, 3:] = -torch.inf
    torch.testing.assert_close(log_sum_exp(scores), scores.logsumexp(dim=1))


@pytest.mark.parametrize("size", [3, 2 * BLOCK, 8 * BLOCK, 8 * BLOCK + 1, 50 * BLOCK - 1])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_largest_of_many_are_those_of_all(size, count):
    scores = torch.rand(5, 2, size, generator=torch.Generator().manual_seed(size))
    scores[0, 0, -1] = 2.0  # in what is left over
    scores[0, 1, : min(count, size)] += 1.0  # all in one run
    scores[1, 0, 1:] = -torch.inf  # most are forbidden
    values, places = largest(scores, min(count, size))
    assert torch.equal(values, scores.topk(min(count, size)).values)
    assert torch.equal(scores.gather(2, places), values)
    assert (places.sort(dim=2).values.diff(dim=2) > 0).all()


def test_top_k():
    assert kept(keep_top_k(P.log(), 2)) == [1, 3]
    assert kept(keep_top_k(P.log(), 99)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("mass", "tokens"), [(0.01, [1]), (0.41, [1, 3]), (0.84, [1, 3, 4]), (1.0, [0, 1, 2, 3, 4])])
def test_top_p(mass, tokens):
    assert kept(keep_top_p(P.log(), mass)) == tokens


@pytest.mark.parametrize(("share", "tokens"), [(1.0, [1]), (0.6, [1, 3]), (0.49, [1, 3, 4]), (0.01, [0, 1, 2, 3, 4])])
def test_min_p(share, tokens):
    assert kept(keep_min_p(P.log(), share)) == tokens


def test_beams_are_dealt_out_by_need():
    """Token 4 must come: what has it, however unlikely, takes turns with what has it not."""
    phrases = Phrases([(4,)], [], eos_id=2, suppress=(), vocab_size=6)
    scores = torch.tensor([[[-9.0, -8.0, -torch.inf, -1.0, -5.0, -2.0], [-9.5, -8.5, -torch.inf, -1.5, -6.0, -2.5]]])
    parents, words, added = best_by_need(torch.zeros(1, 2), scores, 6, phrases, torch.zeros(1, 2, dtype=torch.int64))
    assert words.tolist() == [[3, 4, 3, 4, 5, 5]]
    assert parents.tolist() == [[0, 0, 1, 1, 0, 1]]
    assert added.tolist() == [[-1.0, -5.0, -1.5, -6.0, -2.0, -2.5]]


def test_draws_follow_the_probabilities():
    rows = P.log().expand(20000, 5)
    for temperature in (1.0, 0.5):
        config = GenerationConfig(temperature=temperature)
        words = draw(rows, config, torch.Generator().manual_seed(0))
        expected = P[0] ** (1 / temperature)
        torch.testing.assert_close(words.bincount(minlength=5) / 20000, expected / expected.sum(), atol=0.015, rtol=0)


def test_draws_respect_top_k_and_top_p():
    rows = P.log().expand(2000, 5)
    for config in (
        GenerationConfig(temperature=3.0, top_k=2),
        GenerationConfig(temperature=1.0, top_p=0.6),
        GenerationConfig(temperature=2.0, min_p=0.75),
    ):
        assert set(draw(rows, config, torch.Generator().manual_seed(0)).tolist()) == {1, 3}


def test_a_seed_repeats_itself(table, write):
    memory = torch.zeros(3, 2, 6)
    one, two, other = (
        write(table(), memory, temperature=1.5, num_return=4, max_length=8, seed=seed).tokens for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert one.shape[:2] == (3, 4)
    assert one.shape != other.shape or not torch.equal(one, other)
    assert len({tuple(row) for row in one.flatten(0, 1).tolist()}) > 4


def test_sampling_only_the_best_is_greedy(table, write):
    memory = torch.randn(5, 2, 6)
    greedy = write(table(), memory, max_length=8)
    sampled = write(table(), memory, max_length=8, temperature=1.0, top_k=1, num_return=2)
    for r in range(2):
        assert torch.equal(sampled.tokens[:, r], greedy.tokens[:, 0])
        torch.testing.assert_close(sampled.scores[:, r], greedy.scores[:, 0])
