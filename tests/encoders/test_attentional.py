"""Laws of the attentional pooler over another image encoder."""

import pytest
import torch

from velm.encoders.attentional import AttentionalEncoder
from velm.training.fine_tuning.depth import parameter_depths

VIT = {"name": "vit", "dim": 16, "depth": 2, "heads": 2, "pooling": "class"}


def test_the_memory_has_one_length_for_every_image_size():
    encoder = AttentionalEncoder(encoder=VIT, dim=8, queries=5, heads=2).eval()
    for size in (32, 64):
        output = encoder(torch.randn(2, 3, size, size))
        assert (output.features.shape, output.pooled.shape, output.grid) == ((2, 4, 8), (2, 8), None)


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_a_class_token_is_attended_over(pooling):
    encoder = AttentionalEncoder(encoder={**VIT, "pooling": pooling}, dim=8, queries=2, heads=2)
    positions = []
    encoder.pooler.register_forward_pre_hook(lambda _, inputs: positions.append(inputs[0]))
    encoder(torch.randn(1, 3, 32, 32))
    assert positions[0].shape[1] == (5 if pooling == "class" else 4)


def test_the_queries_follow_the_blocks():
    depths = parameter_depths(AttentionalEncoder(encoder=VIT, dim=8, queries=2, heads=2))
    assert depths["pooler.queries"] == depths["pooler.norm.weight"] == max(depths.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dim": 9, "heads": 2}, "dim 9 is not divisible by heads 2"), ({"queries": 1}, "at least 2")],
)
def test_sizes_that_do_not_go(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionalEncoder(encoder=VIT, **options)
