import pytest
import torch

from velm.layers.beam_memory import BeamMemory


@pytest.mark.parametrize(
    "rows", [[0, 0, 1, 1, 2, 2], [2, 2, 0, 0], [0, 1, 1], [2, 0, 0, 1], [1], [0, 1, 2], []], ids=str
)
def test_select_reads_what_the_rows_read(rows):
    tensor = torch.arange(3.0)[:, None].expand(3, 2)
    once = BeamMemory((tensor,), tensor[:, :1] > 0).select(torch.tensor(rows, dtype=torch.int64))
    assert once.tensors[0].repeat_interleave(once.copies, 0)[:, 0].tolist() == rows
    assert once.mask.repeat_interleave(once.copies, 0)[:, 0].tolist() == [row > 0 for row in rows]


def test_beams_within_their_text_copy_nothing():
    tensor = torch.randn(2, 3)
    shared = BeamMemory((tensor,)).select(torch.tensor([0, 0, 0, 1, 1, 1]))
    moved = shared.select(torch.tensor([2, 0, 0, 4, 3, 5]))
    assert moved.tensors[0] is tensor
    assert moved.copies == 3
    one_left = moved.select(torch.tensor([5, 3, 3]))
    assert torch.equal(one_left.tensors[0], tensor[1:])


def test_group_puts_beams_beside_their_memory():
    shared = BeamMemory((torch.zeros(2, 1),), copies=3)
    assert shared.group(torch.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]]
