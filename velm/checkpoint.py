"""Self-contained checkpoints: weights, config, tokenizer, transform and the list of plugins, in one file.

The file is a Lightning checkpoint with one more key, "velm", of plain Python. Reading it needs neither Lightning
nor the training data, and never runs code that the file holds: torch opens it with `weights_only`, and the classes
that its config names are looked up among what is installed here. Weights whose name starts with "model." are the
model's. Where training kept an average of them (EMA), that is what the file has under "state_dict", and the weights
as trained lie under "current_model_state": so Lightning's own callback writes it.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velm.errors import CheckpointError
from velm.model import VisionLanguageModel, build_model
from velm.pretrained.weights import portable_spec, skip_pretrained
from velm.registry import split_config, tokenizers
from velm.registry.manifest import make_manifest, require_parts
from velm.version import __version__

if TYPE_CHECKING:
    from velm.data.text.base import Tokenizer

__all__ = [
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "build_from_checkpoint",
    "build_tokenizer",
    "pack",
    "read_checkpoint",
]

FORMAT = 1
"""The number of the layout of the "velm" entry; raised when an older VELM could not read it rightly."""

_PREFIX = "model."
_ENTRIES = ("config", "tokenizer", "transform", "max_length", "plugins", "data", "target")


@dataclass(frozen=True)
class Checkpoint:
    """What a file says, read but not yet built.

    Attributes:
        path: where it was read.
        version: the VELM that wrote it.
        config: the model's config, with vocab_size and pad_id; `build_model` takes it. Its `plugins` are modules or
            .py files whose decorators register parts.
        tokenizer: {'name': ..., 'state': ...}.
        transform: {'image_size': pixels, 'resize': 'crop' or 'squash'}.
        max_length: tokens of a sentence, bos and eos included.
        plugins: parts that are not VELM's own: kind, name, target, distribution, version.
        data: the data config it was trained with.
        target: True where the data names what to write apart from the text.
        weights: the model's state dict, the average where training kept one.
        raw_weights: the same without averaging; None where training kept no average.
        logit_scale: inverse temperature of the alignment loss, as learnt; None where there is none.
    """

    path: Path
    version: str
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    transform: dict[str, Any]
    max_length: int
    plugins: list[dict[str, str]]
    data: dict[str, Any]
    target: bool
    weights: dict[str, Tensor]
    raw_weights: dict[str, Tensor] | None
    logit_scale: float | None = None


def pack(
    *,
    model: VisionLanguageModel,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    tokenizer_name: str,
    transform: Mapping[str, Any],
    max_length: int,
    data: Mapping[str, Any],
    target: bool = False,
    plugins: list[str] | None = None,
) -> dict[str, Any]:
    """The "velm" entry of a checkpoint: plain Python, to be put beside Lightning's "state_dict".

    Args:
        model: the model as built. A part that it was built without is stored as None. Its parts may carry
            `portable_spec`, options that rebuild them without the folder or the hub their pretrained weights came
            from; they are stored over those of `config`.
        config: the model's config, with vocab_size and pad_id.
        tokenizer: trained.
        tokenizer_name: its name in the registry.
        transform: {'image_size': pixels, 'resize': 'crop' or 'squash'}.
        max_length: tokens of a sentence, bos and eos included.
        data: the data config; `data['dataset']` is the dataset's spec.
        target: whether the data names what to write apart from the text.
        plugins: modules or .py files whose decorators register parts; files are stored by absolute path.
            None takes those of `config`.

    Raises:
        TypeError: something is no plain Python; the message says where.
    """
    modules = config.get("plugins") or [] if plugins is None else plugins
    stored = dict(config) | {"plugins": [_lasting(str(module)) for module in modules]}
    for part in ("image_encoder", "text_encoder", "decoder"):
        built = getattr(model, part)
        if built is None or config.get(part) is None:
            stored[part] = None
        else:
            name, options = split_config(config[part], part)
            stored[part] = {"name": name, **options, **portable_spec(built)}
    entry = {
        "format": FORMAT,
        "version": __version__,
        "config": stored,
        "tokenizer": {"name": tokenizer_name, "state": tokenizer.state()},
        "transform": transform,
        "max_length": max_length,
        "plugins": make_manifest(stored, tokenizer_name, data.get("dataset")),
        "data": data,
        "target": target,
    }
    return _plain(entry, "velm")


def _lasting(module: str) -> str:
    return str(Path(module).resolve()) if module.endswith(".py") else module


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without running anything that it holds; weights stay on disk until they are used.

    Raises:
        CheckpointError: there is no such file, it is damaged, no VELM checkpoint, from a newer VELM, or it wants to
            run code; the message says which and what to do.
    """
    path = Path(path)
    content = _load(path)
    entry = content.get("velm") if isinstance(content, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("format"), int):
        raise CheckpointError(f"{path} is a torch file but no VELM checkpoint: {_looks_like(content)}.{_FITTING}")
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
    raw = content.get("current_model_state")
    return Checkpoint(
        path=path,
        version=version,
        weights=_of_model(content["state_dict"]),
        raw_weights=None if raw is None else _of_model(raw),
        logit_scale=_logit_scale(content["state_dict"]),
        **{key: entry[key] for key in _ENTRIES},
    )


def build_from_checkpoint(checkpoint: Checkpoint, ema: bool = True) -> VisionLanguageModel:
    """The model of a checkpoint, on the CPU and in eval mode, without fetching or reading pretrained weights.

    Args:
        checkpoint: what `read_checkpoint` returned.
        ema: take the average of the weights where training kept one; False takes the weights as trained.

    Raises:
        MissingPluginError: a part comes from a distribution or a file that is not here; the message names it.
        CheckpointError: the weights do not fit the model that the config builds.
    """
    # Losses only say what to train and plugins are imported above: neither is needed, nor may be missed, below.
    config = {key: value for key, value in checkpoint.config.items() if key not in ("losses", "plugins")}
    require_parts(checkpoint.plugins, checkpoint.config.get("plugins") or [], config, str(checkpoint.path))
    with skip_pretrained():
        model = build_model(config)
    weights = checkpoint.weights if ema or checkpoint.raw_weights is None else checkpoint.raw_weights
    _refuse_mismatch(checkpoint, model.state_dict(), weights)
    model.load_state_dict(weights)
    return model.eval()


def build_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint, with the ids it was trained with."""
    needed = {"tokenizer": checkpoint.tokenizer["name"]}
    require_parts(checkpoint.plugins, checkpoint.config.get("plugins") or [], needed, str(checkpoint.path))
    cls: Any = tokenizers.get(checkpoint.tokenizer["name"])
    return cls.from_state(checkpoint.tokenizer["state"])


_FITTING = " `velm fit` writes VELM checkpoints to runs/<name of the config>/best.ckpt and last.ckpt."


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(_no_file(path))
    with path.open("rb") as file:
        head = file.read(4)
    if head[:1] == b"\x80":  # the first byte of every binary pickle
        raise CheckpointError(_refused(path, "it is a bare pickle, which can run anything when it is opened"))
    if not head.startswith(b"PK"):
        raise CheckpointError(f"{path} is no torch file (it begins with {head!r}).{_FITTING}")
    if not zipfile.is_zipfile(path):  # an archive ends with its table of contents
        raise CheckpointError(_damaged(path, "its end is missing, as after an interrupted write or download"))
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if wanted is None:
            raise CheckpointError(_damaged(path, "its table of values cannot be read")) from error
        raise CheckpointError(_refused(path, f"it wants to run {wanted[1]} when it is opened")) from error
    except Exception as error:  # torch raises RuntimeError, OSError, EOFError, KeyError ... on damaged archives
        raise CheckpointError(_damaged(path, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")) from error


def _no_file(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    found = sorted(str(p) for p in folder.glob("*.ckpt")) if folder.is_dir() else []
    there = f" There: {', '.join(found[:5])}." if found else _FITTING
    return f"{path} is a folder, not a checkpoint.{there}" if path.is_dir() else f"No checkpoint at {path}.{there}"


def _refused(path: Path, why: str) -> str:
    return (
        f"{path} was refused and not opened: {why}. A checkpoint needs weights and plain values only; do not load "
        f"this file in another way unless you trust who made it."
    )


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged: {why}. Copy or download it again, or take another checkpoint of the run."


def _looks_like(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    if "pytorch-lightning_version" in content:
        return "it is a Lightning checkpoint of another project, without the entry 'velm'"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return f"it holds {len(content)} weights only, without the config that they belong to"
    return f"it has no entry 'velm', but {', '.join(map(str, list(content)[:6])) or 'nothing'}"


def _logit_scale(state: dict[str, Tensor]) -> float | None:
    """What an alignment loss has learnt to multiply cosines with, if one has."""
    logs = [value for key, value in state.items() if key.startswith("losses.") and key.endswith(".log_scale")]
    return float(logs[0].exp()) if logs else None


def _of_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(_PREFIX): value for key, value in state.items() if key.startswith(_PREFIX)}


def _refuse_mismatch(checkpoint: Checkpoint, built: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    faults = [f"{key} is missing" for key in built if key not in stored]
    faults += [f"{key} has no place" for key in stored if key not in built]
    faults += [
        f"{key} is {tuple(stored[key].shape)} in the file and {tuple(built[key].shape)} in the model"
        for key in built
        if key in stored and stored[key].shape != built[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"The weights of {checkpoint.path} do not fit the model that its config builds: {'; '.join(faults[:5])}"
            f"{more}. It was written by VELM {checkpoint.version} (this is {__version__}); an encoder or decoder has "
            f"changed since: install the versions it was trained with, or train anew."
        )


def _plain(value: Any, where: str) -> Any:
    """A copy of nothing but dict, list, str, int, float, bool and None, which `weights_only` reads back."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint stores plain Python (numbers, text, lists).")
