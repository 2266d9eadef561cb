"""`model.pretrained`: a new run starts from the weights of another model.

    source ── read_source ──> weights, tokenizer ── transfer ──> the task's parameters, and what was not transferred

Of a checkpoint of VELM, whatever fits is taken. A tower of a model of another library is taken as a whole, or replaced.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from velm.checkpoint import build_tokenizer, merge
from velm.errors import ConfigError
from velm.model.adapt import adapt
from velm.pretrained.adapters import remove_adapters
from velm.registry import split_config
from velm.sources import is_foreign, open_source
from velm.training.recovery.resume import run_seed
from velm.training.transfer import Source, Transfer, shared_tokens, transfer

__all__ = ["read_source", "start_from"]


def read_source(source: str) -> Source:
    """The weights, adapters merged, and the tokenizer that `source` names, see `velm.sources.open_source`.

    Raises:
        CheckpointError: it is not there or cannot be used.
    """
    checkpoint = merge(open_source(source))
    whole = checkpoint.config if is_foreign(source) else None
    return Source(source, checkpoint.state_dict(), build_tokenizer(checkpoint), whole, checkpoint.max_length)


def start_from(source: str, task: Any) -> None:
    """Give a task the weights of `source` that fit, and print what did not.

    Args:
        source: what `read_source` takes.
        task: a `VisionLanguageTask`, attached to a trainer with a data module.

    Raises:
        CheckpointError: the source cannot be used, or nothing of it fits.
    """
    data = task.trainer.datamodule
    config = {key: value for key, value in task.model_config.items() if key != "adapt"}
    remove_adapters(task.model)
    start = of_losses(read_source(source), task.losses)
    if start.whole is not None:
        require_same_tokens(start, config, data)
    result = transfer(start, task.model, task.losses, config, data.tokenizer)
    if start.whole is not None:
        require_whole_towers(start, config, result)
    if task.trainer.is_global_zero:
        print(result.describe(source, [name for name in task.state_dict() if name.startswith(("model.", "losses."))]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run_seed())  # on all ranks the same, whatever has drawn numbers before
        adapt(task.model, task.model_config.get("adapt"))  # after the transfer: DoRA and pissa begin with the base


def of_losses(source: Source, losses: Any) -> Source:
    """The source with the scale and the bias of its alignment loss under the name of the run's, whatever loss it is."""
    names = [name for name, loss in losses.items() if hasattr(loss, "log_scale")]
    if source.whole is None or len(names) != 1:
        return source
    renamed = {
        f"losses.{names[0]}.{name.rpartition('.')[2]}" if name.startswith("losses.") else name: tensor
        for name, tensor in source.weights.items()
    }
    scale = renamed.get(f"losses.{names[0]}.log_scale")
    limit = getattr(losses[names[0]], "max_scale", math.inf)
    if scale is not None and float(scale.exp()) > limit * (1 + 1e-6):
        warnings.warn(
            f"{source.name} scales cosines by {float(scale.exp()):.1f}, and the loss {names[0]} limits its scale to "
            f"{limit:g}. To begin where the source is, set losses.{names[0]}.max_scale to more.",
            stacklevel=2,
        )
    return replace(source, weights=renamed)


def require_same_tokens(source: Source, config: Mapping[str, Any], data: Any) -> None:
    """Check that the run's texts are what the text encoder and the decoder of a foreign model read.

    Raises:
        ConfigError: another tokenizer, or longer texts; both sides are named.
    """
    assert source.whole is not None
    assert source.tokenizer is not None
    readers = [part for part in ("text_encoder", "decoder") if _same_name(config, source.whole, part)]
    if readers and shared_tokens(source.tokenizer, data.tokenizer) is not None:
        raise ConfigError(
            f"data.tokenizer is {data.tokenizer_name!r}, and the {readers[0]} of {source.name} reads the tokens of its "
            f"own tokenizer. Leave data.tokenizer out, or name another model.{readers[0]}."
        )
    if "text_encoder" not in readers:
        return
    if source.max_length is not None and data.max_length > source.max_length:
        raise ConfigError(
            f"data.max_length is {data.max_length} tokens, and the text encoder of {source.name} reads at most "
            f"{source.max_length}. Leave data.max_length out, or lower it."
        )


def require_whole_towers(source: Source, config: Mapping[str, Any], result: Transfer) -> None:
    """Check that a tower of a foreign model was taken as a whole, unless the run has another one in its place.

    Raises:
        ConfigError: an option contradicts the source; both sides are named.
    """
    assert source.whole is not None
    kept = set(result.kept)
    towers = {
        "image_encoder": ("image_encoder", "image_projection"),
        "text_encoder": ("text_encoder", "text_projection"),
        "decoder": ("decoder",),
    }
    for tower, parts in towers.items():
        if not _same_name(config, source.whole, tower):
            continue
        for part in parts:
            lost = [name for name in source.weights if name.startswith(f"model.{part}.") and name not in kept]
            new = [name for name in result.new if name.startswith(f"model.{part}.")]
            if lost or new:
                raise ConfigError(
                    f"The {part} of {source.name} does not fit this run's: "
                    f"{_contradictions(source.whole, config, part)}. Leave these options out, or name another "
                    f"{tower}, which then starts from scratch."
                )


def _same_name(config: Mapping[str, Any], whole: Mapping[str, Any], part: str) -> bool:
    """Whether a run and a source have parts of the same class."""
    if config.get(part) is None or whole.get(part) is None:
        return False
    return split_config(config[part], part)[0] == split_config(whole[part], part)[0]


def _contradictions(whole: Mapping[str, Any], config: Mapping[str, Any], part: str) -> str:
    """'model.text_encoder.dim is 256 here and 512 there' for each option that differs."""
    there, here = ({"embed_dim": each.get("embed_dim"), part: each.get(part)} for each in (whole, config))
    if not part.endswith("_projection"):
        there, here = (split_config(each[part], part)[1] for each in (whole, config))
    prefix = "model." if part.endswith("_projection") else f"model.{part}."
    there, here = _flat(there), _flat(here)
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]  # what the run says comes first
    listed = [
        f"{prefix}{name} is {here.get(name, 'left out')} here and {there.get(name, 'left out')} there"
        for name in names[:5]
    ]
    more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
    return "; ".join(listed) + more or "its weights have other names"


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
