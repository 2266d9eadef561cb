"""The folder of `velm export --format onnx`: graphs, tokenizer, transform, config.json and the hashes of them all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from velm.errors import CheckpointError
from velm.util import sha256_of
from velm.version import __version__

__all__ = ["CONFIG", "FORMAT", "TOKENIZER", "TRANSFORM", "DecoderConfig", "OnnxConfig", "read_folder", "seal_folder"]

FORMAT = 1
"""The layout of config.json; increased when an older VELM could not read the new layout."""
CONFIG, TOKENIZER, TRANSFORM, HASHES = "config.json", "velm_tokenizer.json", "transform.json", "sha256.json"


@dataclass(frozen=True)
class DecoderConfig:
    """How start.onnx and step.onnx are called.

    Attributes:
        memory: names of the tensors that stay as they are from step to step, the mask included.
        past: names of the tensors that every step replaces by its outputs, in this order behind the logits.
        start_id: the token that a caption begins with.
        eos_id: the token that ends it.
        suppress: tokens that are never written.
        max_length: longest caption in tokens, bos included; None: no limit.
    """

    memory: list[str]
    past: list[str]
    start_id: int
    eos_id: int
    suppress: list[int]
    max_length: int | None


@dataclass(frozen=True)
class OnnxConfig:
    """The content of config.json.

    Attributes:
        parts: names of the image encoder, the text encoder and the decoder in VELM.
        outputs: by tower, 'image' or 'text', the names of its outputs: embeds, features, pooled.
        embed_dim: width of the joint space.
        max_length: longest text in tokens, bos and eos included.
        aligned: whether there are embeddings.
        memory: what the decoder reads: 'image', 'text' or both.
        decoder: None: the model writes nothing.
        logit_scale, logit_bias: as of `velm.Pipeline`.
        tokenization: of captions in metrics, as of `velm.Pipeline`.
        quantize: 'int8' or None.
    """

    parts: dict[str, str]
    outputs: dict[str, list[str]]
    embed_dim: int
    max_length: int
    aligned: bool
    memory: list[str]
    decoder: DecoderConfig | None
    logit_scale: float | None
    logit_bias: float | None
    tokenization: str
    quantize: str | None = None

    @property
    def graphs(self) -> list[str]:
        """The names of the graphs, each in a file of its own."""
        return [*self.outputs, *([] if self.decoder is None else ["start", "step"])]

    def write(self, folder: Path, form: str = "onnx") -> None:
        """Write config.json of `velm export --format FORM`, 'onnx' or 'torch'."""
        entry = {"library_name": "velm", "export": form, "format": FORMAT, "version": __version__, **asdict(self)}
        (folder / CONFIG).write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def seal_folder(folder: Path) -> None:
    """Write the hashes of all files; what changes afterwards is refused."""
    hashes = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    (folder / HASHES).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def read_folder(folder: Path, form: str = "onnx", suffix: str = ".onnx") -> OnnxConfig:
    """The config of a folder whose files are all there and unchanged.

    Args:
        form: the format that wrote it, 'onnx' or 'torch'.
        suffix: of its graphs.

    Raises:
        CheckpointError: a file is missing or was changed, it is no such folder, or it is from a newer VELM.
    """
    entry = _read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if not isinstance(entry, dict) or entry.get("export") != form:
        what = "has no config.json" if entry is None else "has the config.json of something else"
        raise CheckpointError(f"{folder} is no folder of `velm export --format {form}`: it {what}.")
    if entry["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} was written by VELM {entry['version']} in layout {entry['format']}; this is VELM {__version__}, "
            f"which reads layouts up to {FORMAT}. Upgrade: pip install --upgrade velm"
        )
    hashes = _read_json(folder / HASHES) if (folder / HASHES).is_file() else {}
    _require_whole(folder, hashes)
    known = {each.name for each in fields(OnnxConfig)}
    config = OnnxConfig(**{name: value for name, value in entry.items() if name in known})
    _require_names(folder, [f"{name}{suffix}" for name in config.graphs])
    decoder = entry["decoder"]
    return config if decoder is None else OnnxConfig(**{**vars(config), "decoder": DecoderConfig(**decoder)})


def _require_whole(folder: Path, hashes: dict[str, str]) -> None:
    _require_names(folder, [HASHES, TOKENIZER, TRANSFORM, *hashes])
    for name, expected in hashes.items():
        if (found := sha256_of(folder / name)) != expected:
            raise CheckpointError(
                f"{folder / name} was changed after it was written: its sha256 is {found[:12]}..., that of the export "
                f"{expected[:12]}.... Take the whole folder again, or write it again with `velm export`."
            )


def _require_names(folder: Path, names: Iterable[str]) -> None:
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}: it was not copied or downloaded whole. Take the whole folder again, "
            f"or write it again with `velm export`."
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}): take the whole folder again.") from error
