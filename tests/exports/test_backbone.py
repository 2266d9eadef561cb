"""`velm export --format backbone`: the image encoder alone, read strictly by `velm.load_backbone`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import velm
from velm import cli
from velm.checkpoint import read_checkpoint
from velm.errors import CheckpointError, ConfigError, ExportError
from velm.exports.backbone import export_backbone


def test_the_folder_is_the_image_encoder(
    write_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, made = write_checkpoint(), tmp_path / "backbone"
    assert cli.main(["export", str(checkpoint), "--format", "backbone", "--output", str(made)]) == 0
    printed = capsys.readouterr().out
    assert "is exported as velm's Backbone" in printed
    assert "map 0          largest difference 0.0e+00, cosine 1.0000" in printed
    pipeline = velm.load(tmp_path / "tiny.ckpt")
    backbone, expected = velm.load_backbone(made).eval(), pipeline.backbone().eval()
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        for found, same in zip(backbone(images).values(), expected(images).values(), strict=True):
            assert torch.equal(found, same)
    assert (made / "model.safetensors").stat().st_mode == (made / "config.json").stat().st_mode  # as the umask says
    encoder = pipeline.model.image_encoder
    assert encoder is not None
    assert set(load_file(made / "model.safetensors")) == set(encoder.state_dict())
    assert velm.load_backbone(made, out_channels=8, out_indices=[-1], trainable=False).out_channels == 8
    card = (made / "README.md").read_text(encoding="utf-8")
    assert "velm.load_backbone" in card
    assert "pipeline_tag: image-feature-extraction" in card


def test_training_it_leaves_the_pipeline_alone(write_checkpoint: Callable[..., Path]) -> None:
    pipeline = velm.load(write_checkpoint())
    backbone = pipeline.backbone()
    next(backbone.encoder.parameters()).data.zero_()
    assert pipeline.model.image_encoder is not None
    assert next(pipeline.model.image_encoder.parameters()).any()


def test_what_does_not_fit_is_refused(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path, made = write_checkpoint(), tmp_path / "backbone"
    made.mkdir()
    export_backbone(read_checkpoint(path), velm.load(path), made)
    weights = load_file(made / "model.safetensors")
    name = next(iter(weights))
    save_file({key: tensor for key, tensor in weights.items() if key != name}, made / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"do not fit .*{name}.*again with `velm export --format backbone`"):
        velm.load_backbone(made)
    entry = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(entry | {"format": 99}))
    with pytest.raises(CheckpointError, match=r"in backbone format 99; this is VELM .*Upgrade"):
        velm.load_backbone(made)
    (made / "model.safetensors").unlink()
    for folder in (made, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"is no folder of `velm export --format backbone`.*\.backbone\(\)"):
            velm.load_backbone(folder)


def test_models_without_maps_or_images_are_refused(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = write_checkpoint()
    content = read_checkpoint(path)
    pooled = {"name": "attentional", "encoder": {"name": "vit", "class_in_features": True, "pooling": "class"}}
    with pytest.raises(ConfigError, match="ViTEncoder has no maps"):
        velm.backbone.Backbone(velm.image_encoders.build(pooled | {"dim": 8, "queries": 2, "heads": 2}))
    without = replace(content, config={**content.config, "image_encoder": None})
    with pytest.raises(ExportError, match="no image_encoder, so there is no backbone"):
        export_backbone(without, velm.load(path), tmp_path)
