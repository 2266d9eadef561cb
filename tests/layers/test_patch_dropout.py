"""A fixed number of patches of each image stays in training, in their order; outside training all stay."""

from __future__ import annotations

import pytest
import torch

from velm.encoders.vit import ViTEncoder
from velm.layers.patch_dropout import PatchDropout

PATCHES = torch.arange(3 * 10 * 2.0).view(3, 10, 2)


@pytest.mark.parametrize(("probability", "kept"), [(0.0, 10), (0.5, 5), (0.7, 3), (0.74, 3), (0.99, 1)])
def test_a_fixed_number_stays_in_order(probability: float, kept: int) -> None:
    layer = PatchDropout(probability)
    torch.manual_seed(0)
    found = layer(PATCHES)
    assert found.shape == (3, kept, 2)
    for whole, part in zip(PATCHES, found, strict=True):
        places = [whole[:, 0].tolist().index(value) for value in part[:, 0].tolist()]
        assert places == sorted(set(places))
        assert torch.equal(whole[places], part)


def test_images_and_draws_differ_and_a_seed_repeats_them() -> None:
    layer, patches = PatchDropout(0.5), PATCHES[:1].expand(16, -1, -1)
    torch.manual_seed(0)
    first, second = layer(patches), layer(patches)
    assert len({tuple(image[:, 0].tolist()) for image in first}) > 1
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(layer(patches), first)


def test_every_patch_is_equally_likely() -> None:
    torch.manual_seed(0)
    drawn = PatchDropout(0.7)(torch.arange(10.0).view(1, 10, 1).expand(3000, -1, -1))
    counts = drawn.long().flatten().bincount(minlength=10)
    assert counts.min() > 820
    assert counts.max() < 980


def test_all_stay_outside_training() -> None:
    layer = PatchDropout(0.5)
    assert layer.eval()(PATCHES) is PATCHES
    layer.train().active = False
    assert layer(PATCHES) is PATCHES


@pytest.mark.parametrize("probability", [-0.1, 1.0, 2.0])
def test_other_numbers_are_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=rf"patch_dropout is a fraction of the patches, .* got {probability}"):
        ViTEncoder(dim=16, depth=1, heads=2, patch_dropout=probability)


@pytest.mark.parametrize("pooling", ["class", "mean", "attention", "map"])
def test_a_vit_encodes_a_part_in_training_and_all_otherwise(pooling: str) -> None:
    options = {"dim": 16, "depth": 2, "heads": 2, "patch_size": 8, "pooling": pooling}
    torch.manual_seed(0)
    plain, dropping = ViTEncoder(**options), ViTEncoder(**options, patch_dropout=0.75)
    dropping.load_state_dict(plain.state_dict())
    images = torch.rand(3, 3, 32, 32)
    training = dropping(images)
    assert training.features.shape == (3, 4, 16)
    assert (training.grid, training.mask) == (None, None)
    whole, wanted = dropping.eval()(images), plain.eval()(images)
    assert torch.equal(whole.pooled, wanted.pooled)
    assert torch.equal(whole.features, wanted.features)
    assert whole.grid == (4, 4)


def test_the_class_token_and_the_positions_are_those_of_the_patches_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without attention between patches a patch's features are the same whether others are there."""
    encoder = ViTEncoder(dim=16, depth=1, heads=2, patch_size=8, pooling="class", patch_dropout=0.5)
    monkeypatch.setattr(encoder.blocks[0], "forward", lambda x: x)
    images = torch.rand(1, 3, 32, 32)
    part, whole = encoder(images), encoder.eval()(images)
    assert torch.equal(part.pooled, whole.pooled)
    rows = [tuple(row.tolist()) for row in whole.features[0]]
    places = [rows.index(tuple(row.tolist())) for row in part.features[0]]
    assert places == sorted(set(places))
    assert len(places) == 8
