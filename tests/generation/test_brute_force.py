"""Six tokens, sentences of up to five: every search against all the sentences there are."""

from itertools import product

import pytest
import torch

PAD, BOS, EOS, WORDS = 0, 1, 2, (3, 4, 5)
LENGTH = 5


def log_prob(decoder, memory, sentence):
    """log p of one sentence by teacher forcing: nothing is cached."""
    tokens = torch.tensor([[BOS, *sentence[:-1]]])
    logits = decoder.output_projection(decoder(tokens, memory))[0].log_softmax(-1)
    return logits[torch.arange(len(sentence)), torch.tensor(sentence)].sum().item()


def holds(sentence, part):
    return any(tuple(sentence[i : i + len(part)]) == tuple(part) for i in range(len(sentence)))


def every_sentence(decoder, memory, penalty=1.0, keeps=lambda words: True):
    """Score and tokens of every sentence that ends in time and keeps the rules, best first."""
    found = []
    for length in range(LENGTH):
        for words in filter(keeps, product(WORDS, repeat=length)):
            sentence = [*words, EOS]
            found.append((log_prob(decoder, memory, sentence) / len(sentence) ** penalty, sentence))
    return sorted(found, reverse=True)


@pytest.fixture
def memory():
    return torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def same(found, row, expected):
    sentences = [[t for t in sentence if t != PAD] for sentence in found.tokens[row].tolist()]
    kept = [sentence for sentence, score in zip(sentences, found.scores[row], strict=True) if score > -torch.inf]
    assert kept == [sentence for _, sentence in expected]
    torch.testing.assert_close(found.scores[row, : len(kept)], torch.tensor([score for score, _ in expected]))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_beam_search(small_decoder, memory, write, penalty):
    found = write(small_decoder, memory, max_length=LENGTH, num_beams=400, num_return=10, length_penalty=penalty)
    for row in range(2):
        same(found, row, every_sentence(small_decoder, memory[row : row + 1], penalty)[:10])


RULES = {
    "a word": ({"must_include": [[4]]}, lambda w: 4 in w),
    "a phrase": ({"must_include": [[3, 4]]}, lambda w: holds(w, (3, 4))),
    "overlapping phrases": ({"must_include": [[3, 4], [4, 3]]}, lambda w: holds(w, (3, 4)) and holds(w, (4, 3))),
    "three words": ({"must_include": [[3], [4], [5]]}, lambda w: {3, 4, 5} <= set(w)),
    "twice the same": ({"must_include": [[3, 3]]}, lambda w: holds(w, (3, 3))),
    "a forbidden word": ({"forbidden": [[4]]}, lambda w: 4 not in w),
    "forbidden phrases": (
        {"forbidden": [[3, 4], [5, 5, 5]]},
        lambda w: not holds(w, (3, 4)) and not holds(w, (5, 5, 5)),
    ),
    "one and not the other": (
        {"must_include": [[3], [4]], "forbidden": [[3, 4], [5]]},
        lambda w: 3 in w and 4 in w and 5 not in w and not holds(w, (3, 4)),
    ),
    "a beginning": ({"prefix": [4, 3]}, lambda w: w[:2] == (4, 3)),
    "a beginning and a word": ({"prefix": [4], "must_include": [[4, 5]]}, lambda w: w[:1] == (4,) and holds(w, (4, 5))),
    "answers": ({"answers": [[3], [4, 4], [5, 3, 4, 4]]}, lambda w: w in [(3,), (4, 4), (5, 3, 4, 4)]),
    "at least three": ({"min_length": 3}, lambda w: len(w) >= 2),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_constrained_search(small_decoder, memory, write, rule):
    config, keeps = RULES[rule]
    found = write(small_decoder, memory, max_length=LENGTH, num_beams=400, num_return=10, **config)
    for row in range(2):
        same(found, row, every_sentence(small_decoder, memory[row : row + 1], keeps=keeps)[:10])


def diverse(decoder, memory, beams, groups, penalty):
    """The procedure of Vijayakumar et al. 2016 on lists, uncached: what each group found, best first.

    A group is done when it has as many sentences as beams; what is still unfinished at the end is cut, and comes last.
    """
    size = beams // groups
    live, found = [[(0.0, [])] for _ in range(groups)], [[] for _ in range(groups)]
    for length in range(1, LENGTH + 1):
        taken = dict.fromkeys(range(6), 0)
        for g in (g for g in range(groups) if len(found[g]) < size):
            going = []
            for _, sentence in live[g]:
                for word in (EOS, *WORDS):
                    total = log_prob(decoder, memory, [*sentence, word])
                    going.append((total - penalty * taken[word], total, [*sentence, word]))
            going = sorted(going, reverse=True)[: 2 * size]
            found[g] += [(True, total / length, s) for _, total, s in going[:size] if s[-1] == EOS]
            live[g] = [(total, s) for _, total, s in going if s[-1] != EOS][:size]
            for _, sentence in live[g]:
                taken[sentence[-1]] += 1
    for g in (g for g in range(groups) if len(found[g]) < size):
        found[g] += [(False, total / LENGTH, s) for total, s in live[g]]
    return [sorted(group, reverse=True) for group in found]


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize(("beams", "groups", "penalty"), [(6, 2, 0.7), (6, 3, 1.5), (6, 6, 5.0), (6, 2, 0.2)])
def test_diverse_beams(small_decoder, memory, write, beams, groups, penalty, count):
    found = write(
        small_decoder, memory, max_length=LENGTH, num_beams=beams, num_beam_groups=groups, diversity_penalty=penalty,
        num_return=count,
    )  # fmt: skip
    for row in range(2):
        expected = diverse(small_decoder, memory[row : row + 1], beams, groups, penalty)
        turns = [group[i] for i in range(max(map(len, expected))) for group in expected if i < len(group)]
        distinct = list({tuple(sentence): (ended, score, sentence) for ended, score, sentence in turns}.values())
        chosen = sorted(distinct[:count], reverse=True)  # of each group the best, then of each the second best
        same(found, row, [(score, sentence) for _, score, sentence in chosen])


def test_wide_groups_are_exhaustive(small_decoder, memory, write):
    found = write(
        small_decoder, memory, max_length=LENGTH, num_beams=800, num_beam_groups=2, diversity_penalty=0.5, num_return=7
    )
    for row in range(2):
        best = every_sentence(small_decoder, memory[row : row + 1])[:4]
        ours = [[t for t in s if t != PAD] for s in found.tokens[row].tolist()]
        assert ours[:4] == [s for _, s in best]
