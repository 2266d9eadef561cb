"""The likelihood of a sentence that is already there is the one it would be written with."""

import pytest
import torch

from velm.generation import log_likelihood

PAD, BOS, EOS = 0, 1, 2


@pytest.fixture
def memory():
    return torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    return torch.arange(4) < torch.tensor([4, 2, 3])[:, None]


def sentences(count):
    """Tokens and mask of sentences of 1 to 6 words."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 7, (count,), generator=generator)
    tokens = torch.full((count, 8), PAD)
    for row, length in enumerate(lengths.tolist()):
        words = torch.randint(3, 6, (length,), generator=generator).tolist()
        tokens[row, : length + 2] = torch.tensor([BOS, *words, EOS])
    return tokens, tokens != PAD


def test_it_is_what_teacher_forcing_says(small_decoder, memory, mask):
    tokens, content = sentences(3)
    likely = log_likelihood(small_decoder.train(), tokens, content, memory, mask)
    assert small_decoder.training  # as it was, though it read without dropout
    logits = small_decoder.eval().output_projection(small_decoder(tokens[:, :-1], memory, mask)).log_softmax(-1)
    each = logits.gather(2, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(likely, (each * content[:, 1:]).sum(1))


def test_it_is_the_score_of_what_beam_search_writes(small_decoder, memory, mask, write):
    found = write(small_decoder, memory, mask, num_beams=12, num_return=3, length_penalty=0.0, max_length=12)
    ended = (found.tokens == EOS).any(-1).flatten()
    written = found.tokens.flatten(0, 1)
    tokens = torch.cat([torch.full((9, 1), BOS), written], dim=1)
    score = log_likelihood(small_decoder, tokens, tokens != PAD, memory, mask)  # three sentences a memory
    assert ended.any()
    torch.testing.assert_close(score.float()[ended], found.scores.flatten()[ended])


def test_a_shared_memory_is_a_repeated_one(small_decoder, memory, mask):
    tokens, content = sentences(6)
    rows = torch.arange(3).repeat_interleave(2)
    shared = log_likelihood(small_decoder, tokens, content, memory, mask)
    torch.testing.assert_close(shared, log_likelihood(small_decoder, tokens, content, memory[rows], mask[rows]))


def test_all_texts_together_are_certain(table):
    """Every sentence of up to two words, and those that are longer: their probabilities add up to 1."""
    decoder, memory = table(), torch.randn(1, 2, 6)
    ended = [[BOS, EOS, PAD, PAD], *([BOS, a, EOS, PAD] for a in (0, 1, 3, 4, 5))]
    open_ended = [[BOS, a, b, c] for a in (0, 1, 3, 4, 5) for b in (0, 1, 3, 4, 5) for c in range(6)]
    short = torch.tensor(ended)
    content = torch.arange(4) < torch.tensor([2, *[3] * 5])[:, None]
    total = log_likelihood(decoder, short, content, memory).exp().sum()
    rest = torch.tensor(open_ended)
    total += log_likelihood(decoder, rest, torch.ones_like(rest, dtype=torch.bool), memory).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_every_memory_takes_the_same_number(table):
    tokens, content = sentences(4)
    with pytest.raises(ValueError, match="4 texts for 3 memories: each memory takes the same number"):
        log_likelihood(table(), tokens, content, torch.randn(3, 2, 6))
