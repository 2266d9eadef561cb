"""The convolutional encoder: any image, neighbours in the batch that do not matter, places that do."""

from __future__ import annotations

import pytest
import torch
from encoding import random_images

from velm.encoders.cnn import CNNEncoder

KINDS = [
    (architecture, norm, pooling)
    for architecture in ("residual", "plain")
    for norm in ("group", "batch", "none")
    for pooling in ("max", "mean", "attention")
]


def build(architecture="residual", norm=None, pooling="max", **options):
    torch.manual_seed(0)
    options = {"dim": 16, "widths": [4, 8]} | options
    return CNNEncoder(architecture=architecture, norm=norm, pooling=pooling, **options).double().eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(16, 16), (24, 9), (31, 17), (5, 5)])
def test_any_image_is_halved_three_times(kind, size):
    output = build(*kind)(random_images(2, 3, *size))
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    assert output.grid == (rows, columns)
    assert output.mask is None
    assert output.features.shape == (2, rows * columns, 16)
    assert output.pooled.shape == (2, 16)
    assert output.features.dtype == output.pooled.dtype == torch.float64


def test_64_pixels_are_8_cells_by_default():
    encoder = CNNEncoder().eval()
    output = encoder(torch.randn(1, 3, 64, 64))
    assert output.grid == (8, 8)
    assert output.features.shape == (1, 64, encoder.dim)
    assert output.pooled.dtype == torch.float32


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_depth_keeps_the_grid(architecture, depth):
    assert build(architecture, depth=depth)(random_images(1, 3, 16, 24)).grid == (2, 3)


@pytest.mark.parametrize("widths", [[], [4], [4, 4, 8]])
@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_every_stage_halves_the_grid(architecture, widths):
    output = build(architecture, widths=widths)(random_images(1, 3, 32, 32))
    side = 16 // 2 ** len(widths)
    assert output.grid == (side, side)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_in_training_too_neighbours_matter_to_batch_norm_alone(norm):
    encoder, images = build(norm=norm).train(), random_images(3, 3, 16, 16)
    pooled = encoder(images).pooled
    assert torch.allclose(encoder(images[:1]).pooled[0], pooled[0], rtol=0, atol=1e-10) is (norm == "group")


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_knows_where_things_are(kind):
    encoder, image = build(*kind), torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    image[..., 28:36, 28:36] = 1.0  # far from every edge, so that zero padding gives nothing away
    moved = encoder(image.roll(8, dims=-1)).pooled
    assert not torch.allclose(moved, encoder(image).pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_features_lie_row_by_row(architecture):
    encoder, images = build(architecture, norm="none", depth=1), torch.zeros(1, 3, 64, 128).double()
    changed = images.clone()
    changed[..., 12, 100] = 5.0  # pixel row 12 of cell row 1, pixel column 100 of cell column 12
    difference = (encoder(changed).features - encoder(images).features).norm(dim=-1).view(8, 16)
    rows, columns = difference.sum(dim=1), difference.sum(dim=0)
    assert rows[:4].sum() > 0
    assert rows[6:].sum() == 0
    assert columns[:8].sum() == 0


def test_group_norm_survives_one_cell():
    output = build(norm="group", dim=8)(random_images(2, 3, 4, 4))
    assert output.grid == (1, 1)
    assert (output.pooled[0] - output.pooled[1]).abs().max() > 1e-3


def test_errors_settle_the_matter():
    with pytest.raises(ValueError, match=r"divisible by 4 .* dim is 130"):
        CNNEncoder(dim=130)
    with pytest.raises(ValueError, match=r"Unknown architecture 'resnet'. Available: residual, plain"):
        CNNEncoder(architecture="resnet")
    with pytest.raises(ValueError, match=r"Unknown norm 'layer'. Available: group, batch, none"):
        CNNEncoder(norm="layer")
    with pytest.raises(ValueError, match=r"depth is -1; it counts blocks"):
        CNNEncoder(depth=-1)
