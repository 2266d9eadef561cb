"""Stepping equals one forward pass, in float64 and with attention, for every variant of VELM's own decoders."""

import pytest
import torch
from decoding import RNN_DECODERS, TRANSFORMER_DECODERS, open_gates, with_marks

from velm.registry import decoders

DECODERS = [
    *({"name": "rnn", "dim": 8, **options} for options in RNN_DECODERS),
    *({"name": "transformer", "dim": 8, "heads": 2, **options} for options in TRANSFORMER_DECODERS),
]


@pytest.fixture(params=DECODERS, ids=str)
def decoder(request):
    torch.manual_seed(0)
    decoder = decoders.build(request.param, vocab_size=20, memory_dim=6, pad_id=0).double().eval()
    open_gates(decoder)
    return decoder


@pytest.fixture
def inputs(decoder):
    """Tokens that end with padding; row 1 of the memory is padded."""
    torch.manual_seed(1)
    tokens = torch.randint(1, 20, (4, 7)) * (torch.arange(7) < torch.tensor([5, 7, 2, 5])[:, None])
    mask = torch.arange(9) < torch.tensor([9, 4, 9, 9])[:, None]
    memory = torch.randn(4, 9, 6, dtype=torch.float64)
    return tokens, with_marks(memory) if decoder.image_gate else memory, mask


@pytest.mark.parametrize("masked", [False, True])
def test_logits_and_attention_of_each_step_equal_forward(decoder, masked, inputs):
    tokens, memory, mask = inputs
    whole = decoder.decode(tokens, memory, mask if masked else None)
    logits, content = decoder.output_projection(whole.hidden), tokens != 0
    state = decoder.start(memory, mask if masked else None)
    assert state.attention is None
    for t in range(tokens.shape[1]):
        stepped, state = decoder.step(tokens[:, t], state)
        at = content[:, t]
        torch.testing.assert_close(stepped[at], logits[at, t], rtol=0, atol=1e-10)
        torch.testing.assert_close(state.attention[at], whole.attention[at, t], rtol=0, atol=1e-10)


def test_selecting_commutes_with_stepping(decoder, inputs):
    tokens, memory, mask = inputs
    rows = torch.tensor([3, 3, 0, 0, 1, 1])
    _, state = decoder.step(tokens[:, 0], decoder.start(memory, mask))
    after, state_after = decoder.step(tokens[:, 1], state)
    before, state_before = decoder.step(tokens[rows, 1], state.select(rows))
    torch.testing.assert_close(before, after[rows])
    torch.testing.assert_close(state_before.attention, state_after.select(rows).attention)
