import pytest
import torch

from velm.layers.transformer import TransformerBlock


def test_remembering_equals_the_whole():
    block = TransformerBlock(8, heads=2, memory_dim=6).double()
    x, memory = torch.randn(2, 4, 8, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    whole = block(x, causal=True, memory=memory, memory_mask=mask)
    keys_values, past = block.memory_keys_values(memory), None
    for t in range(4):
        step, past = block.self_attend_step(x[:, t : t + 1], past)
        step = block.feed_forward(block.cross_attend(step, keys_values, mask))
        torch.testing.assert_close(step, whole[:, t : t + 1], rtol=0, atol=1e-10)


def test_memory_and_memory_dim_belong_together():
    with pytest.raises(ValueError, match="memory is given but the block was built without a memory_dim"):
        TransformerBlock(8, heads=2)(torch.randn(1, 2, 8), memory=torch.randn(1, 2, 8))
    with pytest.raises(ValueError, match="memory is missing but the block was built with a memory_dim"):
        TransformerBlock(8, heads=2, memory_dim=8)(torch.randn(1, 2, 8))
