"""The "velm" entry of a checkpoint: everything but the weights, as plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from velm.checkpoint.content import COMPLETE, weights_of
from velm.model import VisionLanguageModel
from velm.model.build import needs_of
from velm.outputs import aligns
from velm.pretrained.weights import portable_config
from velm.registry import split_config
from velm.registry.manifest import make_manifest
from velm.registry.scalars import plain
from velm.version import __version__

if TYPE_CHECKING:
    from velm.data.text.base import Tokenizer

__all__ = ["aligned_by_losses", "logits_of", "pack"]


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
    logit_bias: float | None = None,
    tokenization: str = "auto",
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The "velm" entry of a checkpoint, plain Python, to be stored beside Lightning's "state_dict".

    Args:
        model: the model as built. A part that it was built without is stored as None. Its parts may have
            `portable_config`, options that rebuild them without the folder or the hub their pretrained weights came
            from; these replace the options in `config`.
        config: the model config, with vocab_size, pad_id and the losses; it decides whether the model is `aligned`.
        tokenizer: trained.
        tokenizer_name: its name in the registry.
        transform: options of `EvalTransform`.
        max_length: longest text in tokens, bos and eos included.
        data: the data config; `data['dataset']` is the dataset's part config.
        target: whether the dataset has captions to write apart from the texts to read.
        plugins: modules or .py files whose decorators register parts; files are stored by absolute path.
            None takes those of `config`.
        logit_scale, logit_bias: learned, see `logits_of`.
        tokenization: of captions in the metrics of the training.
        origin: see `Checkpoint`.

    Raises:
        TypeError: a value is not plain Python; the message says where.
    """
    modules = config.get("plugins") or [] if plugins is None else plugins
    stored = _stored_config(model, config) | {"plugins": [_absolute(str(module)) for module in modules]}
    entry = {
        "format": COMPLETE,
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
        "logit_bias": logit_bias,
        "tokenization": tokenization,
        "origin": dict(origin or {}),
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


def logits_of(losses: nn.ModuleDict, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the alignment loss makes of a cosine: `logit_scale`, its factor, and `logit_bias`, which SigLIP adds.

    Args:
        losses: `Loss` by name; the first that logs a `logit_scale` decides, else that of distillation.
        state: the checkpoint's "state_dict", such as an EMA; the losses' keys start with "losses.".

    Returns:
        None for what the loss has not learned.
    """
    for scale, name in [(scale, name) for scale in ("logit_scale", "distillation_scale") for name in losses]:
        loss: Any = losses[name]
        if scale in loss.logged():
            copy = deepcopy(loss)
            # not strict: ranks of FSDP2 other than 0 have no state
            copy.load_state_dict(weights_of(f"losses.{name}", state), strict=False)
            logged = copy.logged()
            return {"logit_scale": _number(logged.get(scale)), "logit_bias": _number(logged.get("logit_bias"))}
    return {"logit_scale": None, "logit_bias": None}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


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
