"""Whatever the rules and the search: they hold, and a score is the decoder's own log p."""

import functools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from velm.decoders.rnn import RNNDecoder
from velm.decoders.transformer import TransformerDecoder
from velm.generation import GenerationConfig, generate

PAD, BOS, EOS, VOCAB = 0, 1, 2, 9
word = st.integers(3, VOCAB - 1)
phrase = st.lists(word, min_size=1, max_size=2).map(tuple)
searches = st.one_of(
    st.integers(1, 5).map(lambda n: {"num_beams": n, "num_return": n}),
    st.tuples(st.integers(1, 3), st.integers(2, 3)).map(
        lambda n: {"num_beams": n[0] * n[1], "num_beam_groups": n[1], "diversity_penalty": 1.0, "num_return": n[1]}
    ),
    st.builds(lambda t, n: {"temperature": t, "num_return": n}, st.sampled_from([0.5, 2.0]), st.integers(1, 3)),
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "must_include": st.lists(phrase, max_size=3),
        "forbidden": st.lists(phrase, max_size=3),
        "prefix": st.lists(word, max_size=3),
        "answers": st.lists(st.lists(word, min_size=1, max_size=5), min_size=1, max_size=6),
        "no_repeat_ngram": st.integers(0, 3),
        "min_length": st.integers(0, 6),
    },
)


@functools.cache
def decoder(kind):
    torch.manual_seed(1)
    options = {"vocab_size": VOCAB, "memory_dim": 6, "dim": 8}
    made = RNNDecoder(**options) if kind == "rnn" else TransformerDecoder(**options, depth=1, heads=2, max_length=16)
    torch.nn.init.normal_(made.output_projection.weight)
    return made.double().eval()


def holds(sentence, part):
    return any(tuple(sentence[i : i + len(part)]) == tuple(part) for i in range(len(sentence)))


def log_probs(kind, memory, sentence):
    """Of each token, by teacher forcing: nothing is cached."""
    logits = decoder(kind).output_projection(decoder(kind)(torch.tensor([[BOS, *sentence[:-1]]]), memory))[0]
    return logits.log_softmax(-1)[torch.arange(len(sentence)), torch.tensor(sentence)].float()


def keeps_the_rules(sentence, options):
    words = [token for token in sentence if token != EOS]
    assert not {PAD, BOS} & set(sentence)
    assert tuple(words[: len(options.get("prefix", ()))]) == tuple(options.get("prefix", ()))
    assert not any(holds(words, part) for part in options.get("forbidden", ()))
    if options.get("must_include"):
        assert sentence[-1] == EOS
        assert all(holds(words, part) for part in options["must_include"])
    if "answers" in options:
        assert sentence[-1] == EOS
        assert words in [list(answer) for answer in options["answers"]]


@pytest.mark.parametrize("kind", ["rnn", "transformer"])
@settings(max_examples=60, deadline=None)
@given(rules, searches, st.integers(0, 99))
def test_rules_hold_and_scores_are_log_p(kind, options, search, seed):
    memory = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    try:
        found = generate(
            decoder(kind), memory, bos_id=BOS, eos_id=EOS, pad_id=PAD, suppress=(PAD, BOS),
            config=GenerationConfig(max_length=8, **options, **search),
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    except ValueError:
        assume(False)  # the rules contradict each other: test_rules.py
    with torch.no_grad():
        for row in range(2):
            written = [
                ([token for token in tokens if token != PAD], score.item(), each)
                for tokens, score, each in zip(
                    found.tokens[row].tolist(), found.scores[row], found.log_probs[row], strict=True
                )
                if score > -torch.inf
            ]
            assert written, "something can always be written"
            for sentence, score, each in written:
                keeps_the_rules(sentence, options)
                expected = log_probs(kind, memory[row : row + 1], sentence)
                torch.testing.assert_close(each[: len(sentence)], expected, atol=1e-5, rtol=0)
                assert each[len(sentence) :].eq(0).all()
                assert score == pytest.approx(expected.mean().item(), abs=1e-5)
            if "temperature" not in search:
                assert len({tuple(sentence) for sentence, *_ in written}) == len(written)
