"""The recurrent decoder: its cells and its penalty by hand, padding, and tied embeddings."""

import pytest
import torch

from velm.decoders.rnn import RNNDecoder


def build(**options):
    torch.manual_seed(0)
    return RNNDecoder(vocab_size=20, memory_dim=6, **{"dim": 8, **options}).double().eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    tokens = torch.randint(1, 20, (4, 7))
    for row, length in enumerate([5, 7, 2, 5]):
        tokens[row, length:] = 0
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[1, 4:] = False
    return tokens, torch.randn(4, 9, 6, dtype=torch.float64), mask


def test_padding_is_zero_and_changes_nothing(inputs):
    tokens, memory, mask = inputs
    output = build().decode(tokens, memory, mask)
    assert output.hidden[tokens == 0].eq(0).all()
    assert output.attention[tokens == 0].eq(0).all()
    alone = build().decode(tokens[2:3, :2], memory[2:3])
    torch.testing.assert_close(alone.hidden, output.hidden[2:3, :2])


def test_nothing_to_look_at_is_no_nan(inputs):
    tokens, memory, mask = inputs
    mask[0] = False
    decoder = build(doubly_stochastic=1.0)
    output = decoder.decode(tokens, memory.requires_grad_(), mask)
    (output.hidden.sum() + output.penalty).backward()
    assert memory.grad.isfinite().all()


def test_penalty_by_hand():
    """Uniform attention over N = 4 for T steps: each position gets T / 4, so 4 (1 - T / 4)^2 a sentence."""
    decoder = build(doubly_stochastic=0.5)
    torch.nn.init.zeros_(decoder.score)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 0, 0, 0, 0]])
    penalty = decoder.decode(tokens, torch.randn(2, 4, 6, dtype=torch.float64)).penalty
    assert penalty.item() == pytest.approx(0.5 * (4 * (1 - 6 / 4) ** 2 + 4 * (1 - 2 / 4) ** 2) / 2)
    mask = torch.tensor([[True, True, False, False]] * 2)  # then N = 2
    penalty = decoder.decode(tokens, torch.randn(2, 4, 6, dtype=torch.float64), mask).penalty
    assert penalty.item() == pytest.approx(0.5 * (2 * (1 - 6 / 2) ** 2 + 2 * (1 - 2 / 2) ** 2) / 2)
    assert build().decode(tokens, torch.randn(2, 4, 6, dtype=torch.float64)).penalty is None


def test_no_text_at_all_is_no_error():
    assert build()(torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 4, 6, dtype=torch.float64)).shape == (2, 3, 8)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_cells_are_those_of_torch(cell):
    """With the context cut off, the recurrence is torch's own."""
    decoder = build(cell=cell)
    torch.nn.init.zeros_(decoder.from_context.weight)
    parts = decoder.from_hidden.weight.split(decoder.widths)[2].chunk(4 if cell == "lstm" else 3)
    biases = decoder.from_hidden.bias.split(decoder.widths)[2].chunk(len(parts))
    inputs = decoder.from_token.weight.chunk(len(parts))
    input_biases = decoder.from_token.bias.chunk(len(parts))
    order = [0, 1, 3, 2] if cell == "lstm" else [0, 1, 2]  # torch: input, forget, candidate, output
    own = (torch.nn.LSTM if cell == "lstm" else torch.nn.GRU)(8, 8, batch_first=True).double()
    own.load_state_dict(
        {
            "weight_ih_l0": torch.cat([inputs[i] for i in order]),
            "weight_hh_l0": torch.cat([parts[i] for i in order]),
            "bias_ih_l0": torch.cat([input_biases[i] for i in order]),
            "bias_hh_l0": torch.cat([biases[i] for i in order]),
        }
    )
    tokens, memory = torch.randint(1, 20, (2, 5)), torch.randn(2, 3, 6, dtype=torch.float64)
    state = decoder.start(memory)
    before = (state.hidden[None], state.cell[None]) if cell == "lstm" else state.hidden[None]
    expected, _ = own(decoder.embedding(tokens), before)
    for t in range(5):
        _, state = decoder.step(tokens[:, t], state)
        torch.testing.assert_close(state.hidden, expected[:, t])


def test_unknown_cell():
    with pytest.raises(ValueError, match=r"Unknown cell 'rnn'. Available: lstm, gru"):
        build(cell="rnn")


def test_tied():
    decoder = build()
    assert decoder.output_projection.weight is decoder.embedding.weight
    untied = build(tie_embeddings=False)
    assert untied.output_projection.weight is not untied.embedding.weight
