"""A gated block: without the image while the gate is 0, and each source read by its own attention."""

import pytest
import torch

from velm.layers.gated import GatedBlock, memory_masks
from velm.layers.transformer import TransformerBlock

IMAGE = torch.tensor([[True, True, False, False, False]]).expand(3, -1)


@pytest.fixture
def block() -> GatedBlock:
    torch.manual_seed(0)
    return GatedBlock(8, heads=2, memory_dim=6).double().eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    features = torch.randn(3, 5, 6, dtype=torch.float64)
    content = torch.ones(3, 5, dtype=torch.bool)
    content[1, 4] = False
    memory = torch.cat([features, IMAGE[..., None].double()], dim=-1)
    return torch.randn(3, 4, 8, dtype=torch.float64), memory, memory_masks(IMAGE, content)


def test_masks_split_the_content() -> None:
    content = torch.tensor([[True, False, True, True, False]])
    masks = memory_masks(IMAGE[:1], content)
    assert masks[0, 0].tolist() == [False, False, True, True, False]
    assert masks[0, 1].tolist() == [True, False, False, False, False]
    assert torch.equal(memory_masks(IMAGE, None).any(dim=1), torch.ones(3, 5, dtype=torch.bool))


def test_a_closed_gate_is_a_block_over_the_text(block, inputs) -> None:
    x, memory, masks = inputs
    plain = TransformerBlock(8, heads=2, memory_dim=6).double().eval()
    unused = plain.load_state_dict(block.state_dict(), strict=False).unexpected_keys
    assert {key.split(".")[0] for key in unused} == {"image"}
    expected = plain(x, memory=memory[:, 2:, :-1], memory_mask=masks[:, 0, 2:])
    torch.testing.assert_close(block(x, memory=memory, memory_mask=masks), expected)


def test_the_gate_learns_before_it_opens(block, inputs) -> None:
    x, memory, masks = inputs
    block(x, memory=memory, memory_mask=masks).square().sum().backward()
    assert block.image.alpha.grad != 0
    assert block.image.attention.key_value.weight.grad.eq(0).all()  # scaled by the gate, which is 0
    with torch.no_grad():
        block.image.alpha.add_(0.3)
    block(x, memory=memory, memory_mask=masks).square().sum().backward()
    assert block.image.attention.key_value.weight.grad.ne(0).any()


def test_an_open_gate_adds_the_attention_over_the_image(block, inputs) -> None:
    x, memory, masks = inputs
    with torch.no_grad():
        block.image.alpha.fill_(-0.7)
    image = block.image.attention
    text = block.memory_attention(block.memory_norm(x), memory[:, 2:, :-1], mask=masks[:, 0, 2:])
    expected = x + text
    expected = expected + torch.tanh(torch.tensor(-0.7)) * image(block.image.norm(expected), memory[:, :2, :-1])
    attended = block.cross_attend(x, block.memory_keys_values(memory), masks)
    torch.testing.assert_close(attended, expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -2.0])
def test_weights_are_the_shares_of_both_attentions(block, inputs, alpha) -> None:
    x, memory, masks = inputs
    with torch.no_grad():
        block.image.alpha.fill_(alpha)
    weights = block.weights(x, block.memory_keys_values(memory), masks)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    share = abs(torch.tanh(torch.tensor(alpha, dtype=torch.float64)))
    torch.testing.assert_close(weights[..., :2].sum(-1), (share / (1 + share)).expand(3, 4))
    assert weights[1, :, 4].eq(0).all()
