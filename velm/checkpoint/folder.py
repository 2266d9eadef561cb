"""A checkpoint as a folder of safetensors and JSON, the form of it that is published.

config.json              model config, data config, version, format
model.safetensors        weights of model and losses by their names in a .ckpt; a tied tensor is stored once
velm_tokenizer.json      name and state of the tokenizer
transform.json           options of `EvalTransform`
golden.safetensors       images of noise, texts, and what the model says of them, see `velm.exports.golden`
sha256.json              the hash of each of these files, and the names of the tensors

Other files, such as README.md, are not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm.checkpoint.content import COMPLETE, FORMAT, Checkpoint, weights_of
from velm.errors import CheckpointError
from velm.util import sha256_of
from velm.version import __version__

__all__ = ["GOLDEN", "WEIGHTS", "is_folder", "read_folder", "seal_folder", "write_folder"]

CONFIG, WEIGHTS, TOKENIZER, TRANSFORM = "config.json", "model.safetensors", "velm_tokenizer.json", "transform.json"
GOLDEN, HASHES = "golden.safetensors", "sha256.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER, TRANSFORM, GOLDEN)
_ENTRIES = (
    "config", "max_length", "plugins", "data", "target", "aligned", "logit_scale", "logit_bias", "tokenization",
    "origin",
)  # fmt: skip


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder that holds, or should hold, an exported checkpoint."""
    folder = Path(path).expanduser()
    return folder.is_dir() and any((folder / name).is_file() for name in (HASHES, *FILES))


def write_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write everything but the golden file, after which `seal_folder` is to be called.

    Args:
        checkpoint: its `path` and `raw_weights` are not written.
        folder: exists.
    """
    from safetensors.torch import save_file

    entry = {"library_name": "velm", "format": COMPLETE, "version": __version__}
    _write_json(folder / CONFIG, entry | {name: getattr(checkpoint, name) for name in _ENTRIES})
    _write_json(folder / TOKENIZER, checkpoint.tokenizer)
    _write_json(folder / TRANSFORM, checkpoint.transform)
    tensors, tied = _untied(checkpoint.state_dict())
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "tied": json.dumps(tied)})


def seal_folder(folder: Path) -> None:
    """Write the hashes; what changes afterwards is refused."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        names = sorted(file.keys())
    _write_json(folder / HASHES, {"files": {name: sha256_of(folder / name) for name in FILES}, "tensors": names})


def read_folder(path: str | Path) -> Checkpoint:
    """The content of a folder that `velm export --format velm` wrote.

    Raises:
        CheckpointError: a file is missing or was changed, it is no such folder, or it is from a newer VELM.
    """
    from safetensors import safe_open

    folder = Path(path).expanduser()
    _require_whole(folder)
    entry, tokenizer, transform = (_read_json(folder / name) for name in (CONFIG, TOKENIZER, TRANSFORM))
    if entry["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} was written by VELM {entry['version']} in checkpoint format {entry['format']}; this is VELM "
            f"{__version__}, which reads formats up to {FORMAT}. Upgrade: pip install --upgrade velm"
        )
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        tied = json.loads((file.metadata() or {}).get("tied", "{}"))
    state |= {name: state[other] for name, other in tied.items()}
    return Checkpoint(
        path=folder,
        version=str(entry["version"]),
        tokenizer=tokenizer,
        transform=transform,
        weights=weights_of("model", state),
        raw_weights=None,
        loss_weights=weights_of("losses", state),
        **{name: entry[name] for name in _ENTRIES},
    )


def _require_whole(folder: Path) -> None:
    """Raise CheckpointError unless every file is there and is the one that was written."""
    if not (folder / HASHES).is_file() and (folder / CONFIG).is_file():
        other = _read_json(folder / CONFIG)
        if not isinstance(other, dict) or other.get("library_name") != "velm":
            kind = other.get("model_type") if isinstance(other, dict) else None
            what = "its config.json is not VELM's" if kind is None else f"its config.json is of the model type {kind!r}"
            raise CheckpointError(
                f"{folder} is no folder of `velm export --format velm`: {what}. A model of transformers is "
                f"hf/{folder}, one of open_clip is open_clip/{folder}."
            )
    missing = [name for name in (*FILES, HASHES) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}: it was not copied or downloaded whole. Take the whole folder again, "
            f"or write it again with `velm export`."
        )
    hashes = _read_json(folder / HASHES)
    for name in FILES:
        if (found := sha256_of(folder / name)) != hashes["files"].get(name):
            detail = _tensor_changes(folder / name, hashes["tensors"]) if name == WEIGHTS else ""
            raise CheckpointError(
                f"{folder / name} was changed after it was written: its sha256 is {found[:12]}..., that of the export "
                f"{str(hashes['files'].get(name))[:12]}....{detail} Take the whole folder again, or write it again "
                f"with `velm export`."
            )


def _tensor_changes(path: Path, expected: list[str]) -> str:
    """' It lacks a.weight. Additional: b.weight.', or '' where the names are those that were written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        return f" It cannot be read: {error}."
    lacks, more = sorted(set(expected) - names), sorted(names - set(expected))
    lacking = f" It lacks {', '.join(lacks[:5])}." if lacks else ""
    return lacking + (f" Additional: {', '.join(more[:5])}." if more else "")


def _untied(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that are stored, and the name of the stored one for each that is the same."""
    first: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensors, tied


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}): take the whole folder again.") from error
