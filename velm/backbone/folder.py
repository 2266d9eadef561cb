"""A backbone as a folder: `config.json` and `model.safetensors`, the image encoder without the text side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from velm import registry
from velm.backbone.backbone import Backbone
from velm.errors import CheckpointError
from velm.pretrained.weights import skip_pretrained
from velm.registry.manifest import require_parts
from velm.version import __version__

__all__ = ["load_backbone", "write_backbone"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND, FORMAT = "backbone", 1


def write_backbone(
    folder: Path,
    encoder: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    image_size: int,
    plugins: Sequence[Mapping[str, str]] = (),
    modules: Sequence[str] = (),
) -> None:
    """Write an image encoder.

    Args:
        folder: exists.
        encoder: part config of the image encoder.
        weights: its state dict.
        image_size: as of `Backbone`.
        plugins, modules: as of `velm.registry.manifest.require_parts`.
    """
    from safetensors.torch import save_file

    entry = {
        "library_name": "velm", "kind": KIND, "format": FORMAT, "version": __version__, "image_encoder": encoder,
        "image_size": image_size, "plugins": list(plugins), "modules": list(modules),
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)


def load_backbone(
    folder: str | Path,
    *,
    out_channels: int | None = None,
    out_indices: Sequence[int] | None = None,
    trainable: bool = True,
    plugins: Sequence[str] = (),
) -> Backbone:
    """The backbone in a folder that `velm export --format backbone` wrote, on the CPU.

    Args:
        folder: the folder.
        out_channels, out_indices, trainable: as of `Backbone`.
        plugins: as of `velm.load`.

    Raises:
        CheckpointError: it is no such folder, it is from a newer VELM, or its weights do not fit.
        ConfigError: an option cannot be used.
    """
    from safetensors.torch import load_file

    folder = Path(folder).expanduser()
    registry.load_plugins(plugins)
    entry = _read(folder)
    config = entry["image_encoder"]
    require_parts(entry["plugins"], entry["modules"], {"image_encoder": config}, str(folder))
    with skip_pretrained():
        encoder: Any = registry.image_encoders.build(config)
    try:
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # RuntimeError of names and shapes; SafetensorError and OSError of a damaged file
        why = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise CheckpointError(
            f"The weights of {folder / WEIGHTS} do not fit {registry.split_config(config)[0]!r}: {why} Take the whole "
            f"folder again, or write it again with `velm export --format backbone`."
        ) from error
    return Backbone(
        encoder,
        image_size=entry["image_size"],
        out_channels=out_channels,
        out_indices=out_indices,
        trainable=trainable,
    )


def _read(folder: Path) -> dict[str, Any]:
    """config.json."""
    try:
        entry = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        entry = error
    if not isinstance(entry, dict) or entry.get("kind") != KIND or not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} is no folder of `velm export --format backbone`, with {CONFIG} and {WEIGHTS}. Of a checkpoint "
            f"it is velm.load(...).backbone()."
        )
    if entry["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} was written by VELM {entry['version']} in backbone format {entry['format']}; this is VELM "
            f"{__version__}, which reads formats up to {FORMAT}. Upgrade: pip install --upgrade velm"
        )
    return entry
