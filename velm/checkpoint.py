"""Self-contained checkpoints: weights, config, tokenizer, transform and the list of plugins, in one file.

The file is a Lightning checkpoint with one more key, "velm", of plain Python. Reading it needs neither Lightning
nor the training data, and never runs code from the file: torch opens it with `weights_only`, and the classes that
the config names are looked up among the installed ones. Weights whose name starts with "model." belong to the model.
With an exponential moving average (EMA), "state_dict" holds the average and "current_model_state" the weights as
trained, as Lightning's WeightAveraging callback writes them.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velm.errors import CheckpointError
from velm.model import VisionLanguageModel, build_model
from velm.model.build import needs_of
from velm.outputs import aligns
from velm.pretrained.weights import portable_config, skip_pretrained
from velm.registry import split_config, tokenizers
from velm.registry.manifest import make_manifest, require_parts
from velm.registry.scalars import plain
from velm.version import __version__

if TYPE_CHECKING:
    from velm.data.text.base import Tokenizer

__all__ = [
    "FORMAT",
    "Checkpoint",
    "CheckpointError",
    "aligned_by_losses",
    "build_from_checkpoint",
    "build_tokenizer",
    "compare_weights",
    "logit_scale_of",
    "pack",
    "read_checkpoint",
]

FORMAT = 1
"""Version of the layout of the "velm" entry; increased when an older VELM could not read the new layout."""

_HINT = " `velm fit` writes VELM checkpoints to runs/<name of the config>/best.ckpt and last.ckpt."
_ENTRIES = ("config", "tokenizer", "transform", "max_length", "plugins", "data", "target")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file, before anything is built from it.

    Attributes:
        path: the file.
        version: of the VELM that wrote it.
        config: the model config, with vocab_size and pad_id; `build_model` takes it. Its `plugins` are modules or
            .py files whose decorators register parts.
        tokenizer: {'name': ..., 'state': ...}.
        transform: {'image_size': pixels, 'resize': 'crop' or 'squash'}.
        max_length: longest text in tokens, bos and eos included.
        plugins: parts that are not VELM's own: kind, name, target, distribution, version.
        data: the data config of the training.
        target: whether the dataset has captions to write apart from the texts to read.
        weights: state dict of the model; the average where training kept one.
        loss_weights: state dict of the losses, by the name of a loss.
        raw_weights: the weights as trained; None where training kept no average.
        aligned: whether a loss trained the joint space; None in files written before this was stored.
        logit_scale: inverse temperature that the alignment loss learned; None if it learned none.
        tokenization: of captions in the metrics of the training, see `velm.metrics.tokenization`.
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
    loss_weights: dict[str, Tensor]
    aligned: bool | None = None
    logit_scale: float | None = None
    tokenization: str = "auto"


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
    logit_scale: float | None = None,
    tokenization: str = "auto",
) -> dict[str, Any]:
    """The "velm" entry of a checkpoint, plain Python, to be stored beside Lightning's "state_dict".

    Args:
        model: the model as built. A part that it was built without is stored as None. Its parts may have
            `portable_config`, options that rebuild them without the folder or the hub their pretrained weights came
            from; these replace the options in `config`.
        config: the model config, with vocab_size, pad_id and the losses; it decides whether the model is `aligned`.
        tokenizer: trained.
        tokenizer_name: its name in the registry.
        transform: {'image_size': pixels, 'resize': 'crop' or 'squash'}.
        max_length: longest text in tokens, bos and eos included.
        data: the data config; `data['dataset']` is the dataset's part config.
        target: whether the dataset has captions to write apart from the texts to read.
        plugins: modules or .py files whose decorators register parts; files are stored by absolute path.
            None takes those of `config`.
        logit_scale: learned inverse temperature, see `logit_scale_of`.
        tokenization: of captions in the metrics of the training.

    Raises:
        TypeError: a value is not plain Python; the message says where.
    """
    modules = config.get("plugins") or [] if plugins is None else plugins
    stored = _stored_config(model, config) | {"plugins": [_absolute(str(module)) for module in modules]}
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
        "aligned": aligned_by_losses(config),
        "logit_scale": logit_scale,
        "tokenization": tokenization,
    }
    return _plain(plain(entry), "velm")


def _stored_config(model: VisionLanguageModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """The model config that rebuilds `model` without pretrained weights; parts it was built without are None."""
    stored = dict(config)
    for part in ("image_encoder", "text_encoder", "decoder"):
        built = getattr(model, part)
        if built is None or config.get(part) is None:
            stored[part] = None
        else:
            name, options = split_config(config[part], part)
            stored[part] = {"name": name, **options, **portable_config(built)}
    return stored


def _absolute(module: str) -> str:
    return str(Path(module).resolve()) if module.endswith(".py") else module


def aligned_by_losses(config: Mapping[str, Any]) -> bool:
    """Whether a loss of a model config trains the joint embeddings; True if the config lists no losses.

    Both encoders do not suffice: a translator with memory [image, text] has them without an alignment loss.
    """
    return not config.get("losses") or aligns(needs_of(config["losses"]))


def logit_scale_of(losses: nn.ModuleDict, state: Mapping[str, Tensor]) -> float | None:
    """The inverse temperature of the alignment loss at the weights that a checkpoint stores, such as an EMA.

    Args:
        losses: `Loss` by name; the first that logs a `logit_scale` decides.
        state: the checkpoint's "state_dict"; the losses' keys start with "losses.".

    Returns:
        None if no loss logs a `logit_scale`.
    """
    for name, loss in losses.items():
        if "logit_scale" in loss.logged():  # type: ignore[operator]
            prefix = f"losses.{name}."
            stored = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            copy: Any = deepcopy(loss)
            copy.load_state_dict(stored, strict=False)  # not strict: ranks of FSDP2 other than 0 have no state
            return float(copy.logged()["logit_scale"])
    return None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without running code from it; weights are memory-mapped and read when first used.

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
    state, raw = content["state_dict"], content.get("current_model_state")
    return Checkpoint(
        path=path,
        version=version,
        weights=_weights_of("model", state),
        raw_weights=None if raw is None else _weights_of("model", raw),
        loss_weights=_weights_of("losses", state),
        aligned=entry.get("aligned"),
        tokenization=entry.get("tokenization", "auto"),
        logit_scale=entry["logit_scale"] if "logit_scale" in entry else _first_logit_scale(state),
        **{key: entry[key] for key in _ENTRIES},
    )


def build_from_checkpoint(checkpoint: Checkpoint, ema: bool = True) -> VisionLanguageModel:
    """The model of a checkpoint, on the CPU and in eval mode, without fetching or reading pretrained weights.

    Args:
        checkpoint: from `read_checkpoint`.
        ema: use the average of the weights where training kept one; False: the weights as trained.

    Raises:
        MissingPluginError: a part needs a distribution or a file that is not installed; the message names it.
        CheckpointError: the weights do not fit the model that the config builds.
    """
    # losses are only for training and `require_parts` imports plugins: a missing one of either is no error here
    config = {key: value for key, value in checkpoint.config.items() if key not in ("losses", "plugins")}
    require_parts(checkpoint.plugins, checkpoint.config.get("plugins") or [], config, str(checkpoint.path))
    with skip_pretrained():
        model = build_model(config)
    weights = checkpoint.weights if ema or checkpoint.raw_weights is None else checkpoint.raw_weights
    _check_weights(checkpoint, model.state_dict(), weights)
    model.load_state_dict(weights)
    return model.eval()


def build_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The trained tokenizer of a checkpoint."""
    needed = {"tokenizer": checkpoint.tokenizer["name"]}
    require_parts(checkpoint.plugins, checkpoint.config.get("plugins") or [], needed, str(checkpoint.path))
    cls: Any = tokenizers.get(checkpoint.tokenizer["name"])
    return cls.from_state(checkpoint.tokenizer["state"])


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


def _weights_of(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def compare_weights(
    built: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> tuple[list[str], list[str], dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Names of `built` that are not stored, stored names that are not built, and the shapes that differ.

    Returns:
        missing names; left over names; {name: (shape in `stored`, shape in `built`)}.
    """
    shapes = {
        name: (tuple(stored[name].shape), tuple(built[name].shape))
        for name in built
        if name in stored and stored[name].shape != built[name].shape
    }
    return [name for name in built if name not in stored], [name for name in stored if name not in built], shapes


def _check_weights(checkpoint: Checkpoint, built: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    missing, left_over, shapes = compare_weights(built, stored)
    mismatches = [f"{name} is missing" for name in missing]
    mismatches += [f"{name} is not part of the model" for name in left_over]
    mismatches += [f"{name} is {there} in the file and {here} in the model" for name, (there, here) in shapes.items()]
    if mismatches:
        more = f" and {len(mismatches) - 5} more" if len(mismatches) > 5 else ""
        raise CheckpointError(
            f"The weights of {checkpoint.path} do not fit the model that its config builds: "
            f"{'; '.join(mismatches[:5])}{more}. It was written by VELM {checkpoint.version} (this is {__version__}); "
            f"an encoder or decoder has changed since: install the versions it was trained with, or train again."
        )


def _plain(value: Any, where: str) -> Any:
    """A copy in dict, list, str, int, float, bool and None only, which `weights_only` can read."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint stores plain Python (numbers, text, lists).")
