"""`--format backbone`: the image encoder alone, read by `velm.load_backbone`."""

from __future__ import annotations

from pathlib import Path

from velm.backbone import write_backbone
from velm.checkpoint import Checkpoint, weights_of
from velm.errors import ExportError
from velm.pipeline import Pipeline

__all__ = ["export_backbone"]


def export_backbone(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write `config.json` and `model.safetensors`.

    Raises:
        ExportError: the model has no image encoder.
    """
    encoder = checkpoint.config.get("image_encoder")
    if not encoder:
        raise ExportError("This model has no image_encoder, so there is no backbone to export.")
    write_backbone(
        folder,
        encoder,
        weights_of("image_encoder", checkpoint.weights),
        image_size=pipeline.transform.image_size,
        plugins=[row for row in checkpoint.plugins if row["kind"] == "image_encoder"],
        modules=checkpoint.config.get("plugins") or [],
    )
    return "velm's Backbone"
