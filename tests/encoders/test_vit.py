"""The Vision Transformer: patches row by row, any grid, and a class token that stays out of the features."""

from __future__ import annotations

import pytest
import torch
from encoding import close, random_images

from velm.encoders.vit import ViTEncoder

KINDS = [(positions, pooling) for positions in ("sine", "learned") for pooling in ("class", "mean", "attention")]


def build(positions="sine", pooling="mean", **options):
    torch.manual_seed(0)
    options = {"dim": 8, "depth": 2, "heads": 2, "patch_size": 4, "position_grid": 3} | options
    return ViTEncoder(positions=positions, pooling=pooling, **options).double().eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(12, 12), (8, 20), (4, 4)])
def test_any_grid(kind, size):
    output = build(*kind)(random_images(2, 3, *size))
    rows, columns = size[0] // 4, size[1] // 4
    assert output.grid == (rows, columns)
    assert output.mask is None
    assert output.features.shape == (2, rows * columns, 8)
    assert output.pooled.shape == (2, 8)
    assert output.features.dtype == output.pooled.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_patches_lie_row_by_row(kind):
    encoder = build(*kind, depth=0)  # without blocks a patch sees itself alone
    images = random_images(1, 3, 8, 12)
    changed = images.clone()
    changed[:, :, 4:8, 8:12] += 1  # second row, third column
    moved = (encoder(images).features - encoder(changed).features).abs().amax(dim=-1)[0] > 1e-9
    assert moved.tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("kind", KINDS)
def test_where_things_are_matters(kind):
    encoder, image = build(*kind), random_images(1, 3, 4, 8)
    swapped = image.roll(4, dims=-1)  # the same two patches, the other way round
    assert not torch.allclose(encoder(image).pooled, encoder(swapped).pooled, rtol=0, atol=1e-6)


def test_mean_is_of_the_features_and_class_is_not_among_them():
    image = random_images(2, 3, 8, 8)
    output = build(pooling="mean")(image)
    close(output.pooled, output.features.mean(dim=1))
    output = build(pooling="class")(image)
    assert (output.features - output.pooled[:, None]).abs().amax(dim=-1).min() > 1e-6


def test_class_token_is_listed_where_a_captioner_reads_it():
    options = {"dim": 16, "depth": 1, "heads": 2, "patch_size": 4, "pooling": "class"}
    plain, encoder = ViTEncoder(**options).eval(), ViTEncoder(**options, class_in_features=True).eval()
    encoder.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 12, 8)
    expected, output = plain(images), encoder(images)
    assert output.grid is None
    assert torch.equal(output.features, torch.cat([expected.pooled[:, None], expected.features], dim=1))
    with pytest.raises(ValueError, match="needs a class token, and pooling is 'mean'"):
        ViTEncoder(**{**options, "pooling": "mean"}, class_in_features=True)


def test_features_without_the_last_norm():
    options = {"dim": 16, "depth": 2, "heads": 2, "patch_size": 4}
    plain, encoder = ViTEncoder(**options).eval(), ViTEncoder(**options, output_norm=False).eval()
    assert encoder.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == ["norm.weight", "norm.bias"]
    images = torch.randn(2, 3, 12, 8)
    close(plain.norm(encoder(images).features), plain(images).features)


def test_errors_settle_the_matter():
    with pytest.raises(ValueError, match="dim 100 is not divisible by heads 8"):
        ViTEncoder(dim=100, heads=8)
    with pytest.raises(ValueError, match=r"divisible by 4 .* dim is 18"):
        ViTEncoder(dim=18, heads=3)
    with pytest.raises(ValueError, match="position_grid is 0"):
        ViTEncoder(positions="learned", position_grid=0)
    with pytest.raises(ValueError, match="10 x 12 pixels cannot be cut into patches of 4 x 4"):
        build()(random_images(1, 3, 10, 12))
    with pytest.raises(ValueError, match="2 x 12 pixels cannot be cut into patches of 4 x 4"):
        build()(random_images(1, 3, 2, 12))


def test_patches_are_the_convolution():
    encoder, images = build(), random_images(2, 3, 8, 12)
    convolved = encoder.patches(images).flatten(2).transpose(1, 2)
    close(encoder._patch_vectors(images, encoder._grid(images)), convolved)
