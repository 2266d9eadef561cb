"""The recurrent text encoder: its formula by hand, and padding that is never seen."""

from __future__ import annotations

import pytest
import torch
from encoding import close, token_batch
from torch import nn

from velm.encoders.rnn import RNNEncoder

CELLS = ["tanh", "gru", "lstm"]


def build(cell="gru", pooling="last", bidirectional=False, **options):
    torch.manual_seed(0)
    encoder = RNNEncoder(vocab_size=11, dim=8, cell=cell, pooling=pooling, bidirectional=bidirectional, **options)
    return encoder.double().eval()


def test_the_plain_cell_is_its_formula():
    encoder = build("tanh", embed_dim=5)
    nn.init.normal_(encoder.rnn.bias_ih_l0)
    tokens, mask = token_batch()
    W, U, b = encoder.rnn.weight_ih_l0, encoder.rnn.weight_hh_l0, encoder.rnn.bias_ih_l0
    output = encoder(tokens, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        h = torch.zeros(8, dtype=torch.float64)
        for t in range(length):
            h = torch.tanh(W @ encoder.embedding.weight[tokens[row, t]] + U @ h + b)
            close(output.features[row, t], h)
        close(output.pooled[row], h)


@pytest.mark.parametrize("cell", CELLS)
def test_last_is_where_each_direction_ends(cell):
    tokens, mask = token_batch()
    output = build(cell, bidirectional=True, layers=2)(tokens, mask)
    forward, backward = output.pooled.chunk(2, dim=-1)
    close(forward, output.features[torch.arange(3), mask.sum(dim=1) - 1, :4])
    close(backward, output.features[:, 0, 4:])


@pytest.mark.parametrize("both", [False, True])
def test_reading_backwards_is_only_for_both_directions(both):
    tokens, mask = token_batch()
    encoder = build(bidirectional=both)
    changed = tokens.clone()
    changed[:, 1] = changed[:, 1] % 10 + 1
    before, after = encoder(tokens, mask).features[:, 0], encoder(changed, mask).features[:, 0]
    assert torch.equal(before, after) is not both


def test_it_remembers_the_first_of_many_words():
    tokens = torch.randint(1, 11, (2, 40), generator=torch.Generator().manual_seed(0))
    tokens[1, 1:] = tokens[0, 1:]
    tokens[:, 0] = torch.tensor([1, 2])
    for cell in CELLS:
        pooled = build(cell)(tokens, torch.ones_like(tokens, dtype=torch.bool)).pooled
        assert (pooled[0] - pooled[1]).abs().max() > 1e-9, cell


def test_errors_settle_the_matter():
    with pytest.raises(ValueError, match=r"Unknown cell 'elman'. Available: tanh, gru, lstm"):
        RNNEncoder(vocab_size=5, cell="elman")
    with pytest.raises(ValueError, match="dim 7 is odd, but two directions share it"):
        RNNEncoder(vocab_size=5, dim=7, bidirectional=True)
    with pytest.raises(ValueError, match="layers is 0"):
        RNNEncoder(vocab_size=5, layers=0)
    with pytest.raises(ValueError, match="Unknown pooling 'sum'"):
        RNNEncoder(vocab_size=5, pooling="sum")


def test_word_dropout_takes_whole_words_and_only_in_training():
    tokens, mask = token_batch()
    encoder = build(word_dropout=0.5)
    read = []
    encoder.rnn.register_forward_pre_hook(lambda module, args: read.append(args[0].data))
    encoder(tokens, mask)
    assert (read[0] != 0).all()  # eval: every word is read
    encoder.train()(tokens, mask)
    zeros = (read[1] == 0).sum(1)
    assert set(zeros.tolist()) == {0, 8}  # a word is there or it is not
