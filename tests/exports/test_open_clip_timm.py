"""Image towers of timm as open_clip pools and projects them; what differs is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("open_clip")
pytest.importorskip("timm")
from round_trips import write_own

import velm
from velm.exports.open_clip_images import image_tower
from velm.sources import open_source


def limits(path: Path, image: dict[str, Any] | None = None, **model: Any) -> list[str]:
    """What open_clip cannot express of the image tower, with other options of it and of the model."""
    content = open_source(path)
    part = content.config["image_encoder"] | (image or {})
    content = replace(content, config={**content.config, "image_encoder": part, **model})
    return image_tower(content, velm.load(path), "CLIP").limits


@pytest.mark.parametrize(
    ("image", "projection"),
    [
        ({"name": "timm/test_vit", "pooling": "class"}, "linear"),
        ({"name": "timm/test_vit", "pooling": "mean"}, "affine"),
        ({"name": "timm/test_resnet", "pooling": "mean"}, "linear"),
    ],
)
def test_poolings_that_open_clip_has(tmp_path: Path, image: dict[str, Any], projection: str) -> None:
    config = {"image_encoder": image, "text_encoder": {"name": "rnn", "dim": 8}, "decoder": None, "embed_dim": 8,
              "image_projection": projection, "losses": {"contrastive": {}}}  # fmt: skip
    path = write_own(
        tmp_path, config, velm.tokenizers.build({"name": "byte"}), "byte", 16, transform={"image_size": 160}
    )
    assert limits(path) == []
    tower = image_tower(open_source(path), velm.load(path), "CLIP")
    assert tower.config["timm_proj_bias"] == (projection == "affine")
    assert all(name.startswith(("visual.trunk.", "visual.head.proj.")) for name in tower.weights)
    assert torch.equal(tower.weights["visual.head.proj.weight"], open_source(path).weights["image_projection.weight"])


def test_what_open_clip_cannot_express_is_named(tmp_path: Path) -> None:
    image = {"name": "timm/test_vit", "pooling": "own", "global_pool": "avg"}
    config = {"image_encoder": image, "text_encoder": {"name": "rnn", "dim": 8}, "decoder": None, "embed_dim": 8,
              "losses": {"contrastive": {}}}  # fmt: skip
    path = write_own(
        tmp_path, config, velm.tokenizers.build({"name": "byte"}), "byte", 16, transform={"image_size": 160}
    )
    (moved,) = limits(path)
    assert "timm/test_vit with pooling 'own': open_clip's tower does not take its weights" in moved
    named = " ".join(limits(path, {"pooling": "attention", "dim": 16}, image_projection="mlp"))
    assert "image_encoder.dim is 16" in named
    assert "image_encoder.pooling is 'attention', and CLIP pools timm/* by own, mean, max or class" in named
    assert "image_projection is 'mlp', and CLIP has linear, affine, wide_mlp, none for timm/*" in named
    config["image_encoder"] = {"name": "timm/test_vit", "pooling": "own"}
    path = write_own(
        tmp_path, config, velm.tokenizers.build({"name": "byte"}), "byte", 16, transform={"image_size": 160}
    )
    (other,) = limits(path, {"pooling": "mean"})
    assert "open_clip's timm_pool 'avg' gives other numbers" in other
