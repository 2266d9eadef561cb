"""The engine against brute force, and the laws of every search."""

import pytest
import torch

from tests.generation.conftest import small_decoders
from velm import _compat

PAD, BOS, EOS = 0, 1, 2


def log_prob(decoder, memory, sentence):
    """log p of one sentence by teacher forcing."""
    tokens = torch.tensor([[BOS, *sentence[:-1]]])
    logits = decoder.output_projection(decoder(tokens, memory))[0].log_softmax(-1)
    return logits[torch.arange(len(sentence)), torch.tensor(sentence)].sum().item()


def trim(tokens):
    return [[t for t in row if t != PAD] for row in tokens.tolist()]


def test_greedy_is_the_best_token_each_time(table, write):
    decoder, memory = table(seed=3), torch.randn(8, 2, 6)
    found = write(decoder, memory, max_length=6)
    for b in range(8):
        sentence = []
        while len(sentence) < 6 and EOS not in sentence:
            logits = decoder(torch.tensor([[BOS, *sentence]]), memory[b : b + 1])[0, -1].clone()
            logits[[PAD, BOS]] = -torch.inf
            sentence.append(int(logits.argmax()))
        assert trim(found.tokens[b]) == [sentence]
        expected = log_prob(decoder, memory[b : b + 1], sentence) / len(sentence)
        assert found.scores[b, 0].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "config", [{}, {"num_beams": 4, "num_return": 2}, {"num_beams": 3, "no_repeat_ngram": 2, "min_length": 3}], ids=str
)
def test_the_batch_around_does_not_matter(small_decoder, write, config):
    memory = torch.randn(32, 4, 6, dtype=torch.float64)
    mask = torch.rand(32, 4) < 0.8
    mask[:, 0] = True
    together = write(small_decoder, memory, mask, max_length=8, return_attention=True, **config)
    for b in range(0, 32, 5):
        alone = write(small_decoder, memory[b : b + 1], mask[b : b + 1], max_length=8, return_attention=True, **config)
        length = alone.tokens.shape[2]
        assert torch.equal(alone.tokens[0], together.tokens[b, :, :length])
        assert together.tokens[b, :, length:].eq(PAD).all()
        torch.testing.assert_close(alone.scores[0], together.scores[b])
        torch.testing.assert_close(alone.attention[0], together.attention[b, :, :length])


@pytest.mark.parametrize("beams", [1, 3])
def test_attention_is_that_of_teacher_forcing(small_decoder, write, beams):
    memory = torch.randn(3, 4, 6, dtype=torch.float64)
    assert write(small_decoder, memory, max_length=6, num_beams=beams).attention is None
    found = write(small_decoder, memory, max_length=6, num_beams=beams, return_attention=True)
    small_decoder.eval()
    for b in range(3):
        (sentence,) = trim(found.tokens[b])
        whole = small_decoder.decode(torch.tensor([[BOS, *sentence[:-1]]]), memory[b : b + 1]).attention
        torch.testing.assert_close(found.attention[b, 0, : len(sentence)], whole[0])
        assert found.attention[b, 0, len(sentence) :].eq(0).all()


@pytest.mark.parametrize("config", [{}, {"num_beams": 4, "num_return": 4}, {"temperature": 2.0, "num_return": 4}])
def test_shape_of_a_text(table, write, config):
    """Words, then eos once, then padding; nothing that is suppressed."""
    found = write(table(), torch.randn(6, 2, 6), max_length=7, seed=0, suppress=(PAD, BOS, 4), **config)
    assert found.tokens.dtype == torch.int64
    assert found.tokens.shape[:2] == found.scores.shape == (6, config.get("num_return", 1))
    for row in found.tokens.flatten(0, 1).tolist():
        sentence = row[: row.index(EOS) + 1] if EOS in row else row
        assert all(token not in (PAD, BOS, 4) for token in sentence)
        assert all(token == PAD for token in row[len(sentence) :])


def test_ended_comes_before_cut(table, write):
    """A sentence cut at max_length is handed out only where none has ended."""
    decoder = table()
    decoder.table[..., EOS] = -4.0
    found = write(decoder, torch.zeros(1, 2, 6), max_length=4, num_beams=6, num_return=6)
    ended = [EOS in row for row in trim(found.tokens[0])]
    assert ended == sorted(ended, reverse=True)
    assert set(ended) == {True, False}
    decoder.table[..., EOS] = -torch.inf
    assert len(trim(write(decoder, torch.zeros(1, 2, 6), max_length=4).tokens[0])[0]) == 4


def test_what_cannot_be_found_is_padding(table, write):
    found = write(table(), torch.zeros(1, 2, 6), max_length=1, num_beams=5, num_return=5, suppress=(PAD, BOS, 3, 4, 5))
    assert found.tokens[0].tolist() == [[EOS]] + [[PAD]] * 4
    assert found.scores[0, 1:].tolist() == [-torch.inf] * 4


def test_decoder_max_length_is_respected(table, write):
    decoder = table(max_length=3)
    decoder.table[..., EOS] = -torch.inf
    assert write(decoder, torch.zeros(1, 2, 6), max_length=9).tokens.shape == (1, 1, 3)
    transformer = small_decoders(kinds=("transformer",))["transformer"]
    assert write(transformer, torch.randn(2, 4, 6).double(), min_length=30).tokens.shape[2] == 16


def test_nobody_left_means_stop(table, write):
    decoder, steps = table(), []
    decoder.table[..., EOS] = 50.0
    step = decoder.step
    decoder.step = lambda token, state: steps.append(len(token)) or step(token, state)
    write(decoder, torch.zeros(4, 2, 6), max_length=9)
    assert steps == [4]


def test_texts_that_are_done_leave(table, write):
    """Half of the batch ends at once: the rest goes on by itself."""
    decoder, steps = table(), []
    memory = torch.zeros(4, 2, 6)
    memory[:2, :, EOS], memory[2:, :, EOS] = 100.0, -100.0
    step = decoder.step
    decoder.step = lambda token, state: steps.append(len(token)) or step(token, state)
    write(decoder, memory, max_length=3)
    assert steps == [4, 2, 2]


def test_the_decoder_is_put_back(write):
    decoder = small_decoders(kinds=("rnn",))["rnn"].train()
    decoder.dropout.eval()
    one = write(decoder, torch.ones(1, 2, 6).double())
    assert decoder.training
    assert not decoder.dropout.training
    assert torch.equal(one.tokens, write(decoder, torch.ones(1, 2, 6).double()).tokens)


@pytest.mark.skipif(not _compat.packs_linear_weights(), reason="this CPU packs no weights")
@pytest.mark.parametrize("config", [{}, {"num_beams": 3}])
def test_weights_are_packed_while_tokens_are_written(write, config, monkeypatch):
    decoder = small_decoders(vocab_size=30)["transformer"].bfloat16()
    memory, linear, found = torch.randn(4, 5, 6).bfloat16(), decoder.output_projection, []
    hook = linear.register_forward_pre_hook(lambda *_: found.append("forward" in vars(linear)))
    packed = write(decoder, memory, **config)
    assert all(found)
    hook.remove()
    assert "forward" not in vars(linear)
    monkeypatch.setattr(_compat, "packs_linear_weights", lambda: False)
    plain = write(decoder, memory, **config)
    assert torch.equal(packed.tokens, plain.tokens)
    assert torch.equal(packed.scores, plain.scores)


def test_no_memories_no_texts(write):
    assert write(small_decoders(kinds=("rnn",))["rnn"], torch.zeros(0, 2, 6).double()).tokens.shape == (0, 1, 0)


@pytest.mark.parametrize("kind", ["rnn", "transformer", "hf"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_beams": 4, "num_return": 2},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return": 2},
        {"num_beams": 5, "must_include": [[5, 6], [9]], "forbidden": [[4]]},
    ],
    ids=str,
)
def test_cached_alone_and_among_32_is_what_reading_everything_again_says(uncached, write, kind, config):
    """Three kinds of decoder: the cache, the batch and the sharing of a memory among beams change nothing."""
    decoder, memory = uncached.inner(kind), torch.randn(32, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    together = write(decoder, memory, max_length=7, **config)
    again = write(uncached(decoder), memory, max_length=7, **config)
    assert torch.equal(together.tokens, again.tokens)
    torch.testing.assert_close(together.scores, again.scores)
    for b in (0, 17, 31):
        alone = write(decoder, memory[b : b + 1], max_length=7, **config)
        assert torch.equal(alone.tokens[0], together.tokens[b, :, : alone.tokens.shape[2]])
        torch.testing.assert_close(alone.scores[0], together.scores[b])
