"""Reads a checkpoint file without running code from it."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm.checkpoint.content import FORMAT, Checkpoint, weights_of
from velm.errors import CheckpointError
from velm.pretrained.base import fill_in
from velm.version import __version__

__all__ = ["read_checkpoint"]

_HINT = " `velm fit` writes VELM checkpoints to runs/<name of the config>/best.ckpt and last.ckpt."
_ENTRIES = ("config", "tokenizer", "transform", "max_length", "plugins", "data", "target")


def read_checkpoint(path: str | Path, open_base: Callable[[str], Mapping[str, Tensor]] | None = None) -> Checkpoint:
    """Read a checkpoint without running code from it; weights are memory-mapped and read when first used.

    Args:
        path: the file.
        open_base: reads the weights of the base of a file that leaves them out, by their names in a file; None: the
            base is a checkpoint file, too.

    Raises:
        CheckpointError: the file is missing, damaged, not a VELM checkpoint, from a newer VELM, or would run code;
            the message says which and what to do.
    """
    path = Path(path).expanduser()
    content = _load(path)
    entry = content.get("velm") if isinstance(content, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("format"), int):
        raise CheckpointError(f"{path} is a torch file but no VELM checkpoint: {_content_type(content)}.{_HINT}")
    version = str(entry.get("version", "unknown"))
    if entry["format"] > FORMAT:
        raise CheckpointError(
            f"{path} was written by VELM {version} in checkpoint format {entry['format']}; this is VELM {__version__}, "
            f"which reads formats up to {FORMAT}. Upgrade: pip install --upgrade velm"
        )
    missing = [key for key in _ENTRIES if key not in entry]
    if missing or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(
            f"{path} is a VELM checkpoint of format {entry['format']} but lacks {', '.join(missing) or 'state_dict'}; "
            f"it was changed after it was written. Take another copy of it."
        )
    content = fill_in(content, path, open_base or (lambda source: read_checkpoint(source).state_dict()))
    state, raw = content["state_dict"], content.get("current_model_state")
    return Checkpoint(
        path=path,
        version=version,
        weights=weights_of("model", state),
        raw_weights=None if raw is None else weights_of("model", raw),
        loss_weights=weights_of("losses", state),
        aligned=entry.get("aligned"),
        tokenization=entry.get("tokenization", "auto"),
        logit_bias=entry.get("logit_bias"),
        origin=entry.get("origin") or {},
        logit_scale=entry["logit_scale"] if "logit_scale" in entry else _first_logit_scale(state),
        **{key: entry[key] for key in _ENTRIES},
    )


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(_no_file(path))
    with path.open("rb") as file:
        head = file.read(4)
    if head[:1] == b"\x80":  # the first byte of every binary pickle
        raise CheckpointError(_refused(path, "it is a bare pickle, which can run any code when it is opened"))
    if not head.startswith(b"PK"):
        raise CheckpointError(f"{path} is no torch file (it begins with {head!r}).{_HINT}")
    if not zipfile.is_zipfile(path):  # an archive ends with its table of contents
        raise CheckpointError(_damaged(path, "its end is missing, as after an interrupted write or download"))
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if called is None:
            raise CheckpointError(_damaged(path, "its table of values cannot be read")) from error
        raise CheckpointError(_refused(path, f"it would run {called[1]} when it is opened")) from error
    except Exception as error:  # torch raises RuntimeError, OSError, EOFError, KeyError ... on damaged archives
        raise CheckpointError(_damaged(path, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")) from error


def _no_file(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    others = sorted(str(p) for p in folder.glob("*.ckpt")) if folder.is_dir() else []
    hint = f" There: {', '.join(others[:5])}." if others else _HINT
    return f"{path} is a folder, not a checkpoint.{hint}" if path.is_dir() else f"No checkpoint at {path}.{hint}"


def _refused(path: Path, why: str) -> str:
    return (
        f"{path} was refused and not opened: {why}. A checkpoint needs weights and plain values only; do not load "
        f"this file in another way unless you trust who made it."
    )


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged: {why}. Copy or download it again, or take another checkpoint of the run."


def _content_type(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    if "pytorch-lightning_version" in content:
        return "it is a Lightning checkpoint of another project, without the entry 'velm'"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return f"it holds {len(content)} weights only, without the config that they belong to"
    return f"it has no entry 'velm', but {', '.join(map(str, list(content)[:6])) or 'nothing'}"


def _first_logit_scale(state: Mapping[str, Tensor]) -> float | None:
    """The inverse temperature in files written before it was stored: exp of the first `losses.*.log_scale`."""
    logs = [value for key, value in state.items() if key.startswith("losses.") and key.endswith(".log_scale")]
    return float(logs[0].exp()) if logs else None
