"""The automaton of phrases, by hand and against a plain search."""

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from velm.generation.phrases import NEVER, Matcher, Phrases

PAD, BOS, EOS, WORDS = 0, 1, 2, (3, 4, 5)
phrase = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(tuple)


def compiled(required, forbidden=(), suppress=(PAD, BOS), vocab_size=6):
    return Phrases(required, forbidden, eos_id=EOS, suppress=suppress, vocab_size=vocab_size)


def holds(sentence, part):
    return any(tuple(sentence[i : i + len(part)]) == tuple(part) for i in range(len(sentence)))


def state_of(phrases, sentence):
    state = torch.zeros(1, dtype=torch.int64)
    for token in sentence:
        state = phrases.advance(state, torch.tensor([token]))
    return state


@settings(deadline=None)
@given(st.lists(phrase, min_size=1, max_size=3), st.lists(st.sampled_from(WORDS), max_size=8))
def test_the_matcher_finds_what_ends_here(parts, sentence):
    matcher = Matcher(parts)
    node = matcher.root
    for end, token in enumerate(sentence, start=1):
        node = matcher.step(node, token)
        expected = [tuple(sentence[max(0, end - len(part)) : end]) == part for part in parts]
        assert [bool(matcher.hits[node] >> i & 1) for i in range(len(parts))] == expected


def test_words_left_by_hand():
    phrases = compiled([(3, 4), (4, 5)])
    for sentence, left in (((), 3), ((3,), 2), ((3, 4), 1), ((3, 4, 5), 0), ((4, 5), 2), ((4, 5, 3), 1), ((5, 5), 3)):
        assert phrases.remaining(state_of(phrases, sentence)).item() == left


def test_overlap_is_used_and_what_is_forbidden_is_gone_around():
    assert compiled([(3, 4)], [(3,)]).remaining(torch.tensor([0])).item() == NEVER
    assert compiled([(3,), (4,)], [(3, 4)]).remaining(torch.tensor([0])).item() == 2  # 4 3
    both_ways = [(3, 4), (4, 3)]
    assert compiled([(3,), (4,)], both_ways).remaining(torch.tensor([0])).item() == 3  # 3 5 4
    assert compiled([(3,), (4,)], [*both_ways, (5,)]).remaining(torch.tensor([0])).item() == NEVER
    assert compiled([(3,), (4,)], both_ways, suppress=(PAD, BOS, 5)).remaining(torch.tensor([0])).item() == NEVER


@settings(deadline=None)
@given(st.lists(phrase, max_size=2), st.lists(phrase, max_size=2), st.integers(1, 5))
def test_what_is_allowed_is_what_can_still_be_ended(required, forbidden, limit):
    """For every sentence so far: a token is allowed where some sentence that keeps the rules goes on with it."""
    phrases = compiled(required, forbidden)
    whole = {
        sentence
        for length in range(limit)
        for sentence in product(WORDS, repeat=length)
        if all(holds(sentence, part) for part in required) and not any(holds(sentence, part) for part in forbidden)
    }
    begun = {(*sentence, EOS)[:end] for sentence in whole for end in range(len(sentence) + 2)}
    for start in begun:
        if EOS in start or len(start) >= limit:
            continue
        scores = torch.zeros(1, 6).index_fill(1, torch.tensor([PAD, BOS]), -torch.inf)
        allowed = phrases.forbid(scores, state_of(phrases, start), limit - len(start)).isfinite()[0]
        if required:
            assert allowed.nonzero().flatten().tolist() == [w for w in range(6) if (*start, w) in begun]
        else:  # what requires nothing may be cut
            assert all(not holds((*start, w), part) for part in forbidden for w in WORDS if allowed[w])
