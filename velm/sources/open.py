"""Opens a source: a checkpoint of VELM, or a model of another library as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from velm import registry
from velm.checkpoint import Checkpoint, is_folder, read_checkpoint, read_folder, weights_of
from velm.errors import CheckpointError
from velm.sources.foreign import ForeignModel, is_foreign
from velm.sources.hub_folders import download, is_hub
from velm.sources.parts import pretrained_parts
from velm.version import __version__

__all__ = ["describe_source", "open_source", "open_weights"]


def describe_source(source: str) -> ForeignModel:
    """The parts, the tokenizer and the image transform of a model of another library; reads no weights.

    Args:
        source: `hf/<hub id or folder>`, `open_clip/<architecture>@<tag or file>` or `open_clip/<folder>`.

    Raises:
        CheckpointError: there is no such model, or VELM cannot build it; the message says why.
    """
    kind, _, name = source.partition("/")
    try:
        return _READERS[kind](name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} cannot be imported: {error}") from error


def _hf(name: str) -> ForeignModel:
    from velm.sources.hf import describe

    return describe(name)


def _open_clip(name: str) -> ForeignModel:
    from velm.sources.open_clip import describe

    return describe(name)


_READERS = {"hf": _hf, "open_clip": _open_clip}


def open_source(source: str | Path) -> Checkpoint:
    """The content of a checkpoint file, or of one that a model of another library would have.

    Args:
        source: a .ckpt, a folder of `velm export`, 'hf://org/name' for such a folder on the Hugging Face hub, or what
            `describe_source` takes.

    Raises:
        CheckpointError: it cannot be read; the message says why.
    """
    if is_hub(source):
        return read_folder(download(str(source)))
    if is_folder(source) and not is_foreign(source):
        return read_folder(source)
    if not is_foreign(source):
        return read_checkpoint(source, open_base=open_weights)
    model = describe_source(str(source))
    try:
        return as_checkpoint(model)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} cannot be imported: {error}") from error


def open_weights(source: str) -> dict[str, Tensor]:
    """The weights of model and losses of a source, or of what `velm.sources.parts.as_source` names.

    Raises:
        CheckpointError: they cannot be read.
    """
    return pretrained_parts(source) if source.startswith("{") else open_source(source).state_dict()


def as_checkpoint(model: ForeignModel) -> Checkpoint:
    """A foreign model with its weights and its tokenizer."""
    tokenizer: Any = registry.tokenizers.build(model.data["tokenizer"])
    weights = model.read_weights(tokenizer.vocab_size)
    losses = weights_of("losses", weights)
    scale, bias = (_ending(losses, ending) for ending in (".log_scale", ".bias"))
    transform = {name: value for name, value in model.data.items() if name not in ("tokenizer", "max_length")}
    return Checkpoint(
        path=Path(model.name),
        version=__version__,
        config={
            "image_encoder": None,
            "text_encoder": None,
            "decoder": None,
            "memory": ["image"],
            **model.model,
            "losses": model.losses,
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "plugins": [],
        },
        tokenizer={"name": registry.split_config(model.data["tokenizer"])[0], "state": tokenizer.state()},
        transform=transform,
        max_length=model.data["max_length"],
        plugins=[],
        data={},
        target=False,
        weights=weights_of("model", weights),
        raw_weights=None,
        loss_weights=losses,
        aligned=model.aligned,
        logit_scale=None if scale is None else float(scale.exp()),
        logit_bias=None if bias is None else float(bias),
        origin={"imported": model.name},
    )


def _ending(weights: dict[str, Any], ending: str) -> Any:
    return next((tensor for name, tensor in weights.items() if name.endswith(ending)), None)
