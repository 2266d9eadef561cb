"""Weights of one model for another, as far as they fit.

A tensor is transferred if it has the same name and shape. Rows that belong to tokens follow their tokens into another
vocabulary; learned positions are resized to another grid or cut to another length.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from velm.data.text.base import Tokenizer
from velm.errors import CheckpointError
from velm.layers.positions import LearnedGridPositions, LearnedPositions, resize_grid
from velm.model import build_model
from velm.pretrained.weights import skip_pretrained

__all__ = ["Source", "Transfer", "shared_tokens", "transfer"]


@dataclass
class Source:
    """Weights to start from.

    Attributes:
        name: what the user typed.
        weights: by their names in a task, "model.decoder.norm.weight", "losses.contrastive.log_scale".
        tokenizer: whose ids the weights belong to; None: those of the run.
        whole: model config of a model of another library, whose towers are taken as a whole or not at all; None: take
            whatever fits.
        max_length: longest text of its text encoder, in tokens.
    """

    name: str
    weights: dict[str, Tensor]
    tokenizer: Tokenizer | None = None
    whole: dict[str, Any] | None = None
    max_length: int | None = None


@dataclass
class Transfer:
    """What became of the weights; names are those of a task's state dict.

    Attributes:
        kept: tensors that hold the source's values, all of them or those of some tokens.
        tokens: (tokens of the run that keep their vectors, tokens of the run); None: the vocabulary is the same.
        resized: 'name: 4 x 4 to 8 x 8' for each tensor of positions.
        new: tensors of the run that the source does not have.
        other_shape: 'name: (8, 16) there, (8, 32) here'.
        left_out: tensors of the source that the run does not have.
    """

    kept: list[str] = field(default_factory=list)
    tokens: tuple[int, int] | None = None
    resized: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def describe(self, source: str, names: Iterable[str]) -> str:
        """What a run prints: a sentence for each kind of difference."""
        total = Counter(_part(name) for name in names)
        lines = [f"Starts from the weights of {source}: {len(self.kept)} of {sum(total.values())} tensors."]
        if self.tokens is not None:
            kept, all_tokens = self.tokens
            lines.append(f"Vocabulary: {kept} of {all_tokens} tokens keep their vectors, {all_tokens - kept} are new.")
        if self.resized:
            lines.append(f"Positions resized: {'; '.join(self.resized)}.")
        if self.new:
            lines.append(f"New, not in the source: {_by_part(self.new, total)}.")
        if self.other_shape:
            shown = "; ".join(self.other_shape[:5])
            more = f"; and {len(self.other_shape) - 5} more" if len(self.other_shape) > 5 else ""
            lines.append(f"New, of another shape in the source: {shown}{more}.")
        if self.left_out:
            lines.append(f"Left out, not in this model: {_by_part(self.left_out, Counter())}.")
        return " ".join(lines)


@torch.no_grad()
def transfer(
    source: Source, model: nn.Module, losses: nn.Module, config: Mapping[str, Any], tokenizer: Tokenizer
) -> Transfer:
    """Copy into a model and its losses whatever fits; the rest stays as initialised.

    Args:
        source: from `read_source`.
        model: built of `config`.
        losses: of the run; a learned temperature is a weight too.
        config: the model config, with vocab_size.
        tokenizer: of the run's data.

    Raises:
        CheckpointError: no tensor fits.
    """
    parts = {"model": model, "losses": losses}
    own = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    result = Transfer(left_out=[name for name in source.weights if name not in own])
    shared = None if source.tokenizer is None else shared_tokens(source.tokenizer, tokenizer)
    axes = {} if shared is None else _vocabulary_axes(model, config)
    for name, tensor in own.items():
        given = source.weights.get(name)
        if given is None:
            result.new.append(name)
        elif name in axes and shared is not None and _other_axes(given, axes[name]) == _other_axes(tensor, axes[name]):
            _copy_tokens(tensor, given, axes[name], shared)
            result.kept.append(name)
            if tensor.dim() > 1:  # vectors of tokens, not a bias alone
                special = len({tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id})
                result.tokens = (len(shared) - special, tokenizer.vocab_size - special)
        elif name not in axes and given.shape == tensor.shape:
            tensor.copy_(given)
            result.kept.append(name)
        elif _resize_positions(parts, name, tensor, given):
            result.kept.append(name)
            result.resized.append(f"{name.removeprefix('model.')} {_positions(given)} to {_positions(tensor)}")
        else:
            shapes = f"{tuple(given.shape)} there, {tuple(tensor.shape)} here"
            result.other_shape.append(f"{name.removeprefix('model.')} {shapes}")
    if not result.kept:
        raise CheckpointError(
            f"model.pretrained: none of the {len(source.weights)} tensors of {source.name} fits this model of "
            f"{len(own)}. Build the same encoders or decoder, with the same widths, or leave model.pretrained out."
        )
    return result


def shared_tokens(old: Tokenizer, new: Tokenizer) -> list[tuple[int, int]] | None:
    """(new id, old id) of every token that both have, the special ones by their role; None: all ids are the same."""
    special = [(getattr(new, name), getattr(old, name)) for name in ("pad_id", "bos_id", "eos_id", "unk_id")]
    if type(old) is type(new) and old.state() == new.state():
        return None
    ids, others = old.vocabulary(), new.vocabulary()
    if ids == others and old.vocab_size == new.vocab_size and all(a == b for a, b in special):
        return None
    return sorted({*special, *((others[token], ids[token]) for token in others if token in ids)})


def _vocabulary_axes(model: nn.Module, config: Mapping[str, Any]) -> dict[str, int]:
    """The axis of each tensor of the model that counts tokens: it is longer if the vocabulary is."""
    with skip_pretrained(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        larger = build_model({**config, "vocab_size": config["vocab_size"] + 1}).state_dict()
    axes = {}
    for name, tensor in model.state_dict().items():
        longer = [axis for axis, size in enumerate(tensor.shape) if larger[name].shape[axis] != size]
        if longer:
            axes[f"model.{name}"] = longer[0]
    return axes


def _other_axes(tensor: Tensor, axis: int) -> list[int]:
    return [size for number, size in enumerate(tensor.shape) if number != axis]


def _copy_tokens(tensor: Tensor, given: Tensor, axis: int, shared: list[tuple[int, int]]) -> None:
    new_ids, old_ids = (torch.tensor(ids, device=tensor.device) for ids in zip(*shared, strict=True))
    tensor.index_copy_(axis, new_ids, given.to(tensor).index_select(axis, old_ids))


def _resize_positions(parts: Mapping[str, nn.Module], name: str, tensor: Tensor, given: Tensor) -> bool:
    """Fill learned positions from those of another grid or length; False if the tensor is none of either."""
    path, _, _ = name.rpartition(".")
    part, _, inside = path.partition(".")
    module = parts[part].get_submodule(inside)
    if isinstance(module, LearnedGridPositions) and given.dim() == 4 and given.shape[1] == tensor.shape[1]:
        tensor.copy_(resize_grid(given, (tensor.shape[2], tensor.shape[3]), module.antialias))
        return True
    if isinstance(module, LearnedPositions) and given.dim() == 2 and given.shape[1] == tensor.shape[1]:
        length = min(len(given), len(tensor))
        tensor[:length] = given[:length].to(tensor)
        return True
    return False


def _positions(tensor: Tensor) -> str:
    """'4 x 4' of a grid (1, D, 4, 4), '16' of a text (16, D)."""
    return " x ".join(map(str, tensor.shape[-2:] if tensor.dim() == 4 else tensor.shape[:1]))


def _part(name: str) -> str:
    """'decoder' of 'model.decoder.norm.weight', 'losses.contrastive' of 'losses.contrastive.log_scale'."""
    names = name.split(".")
    return names[1] if names[0] == "model" else ".".join(names[:2])


def _by_part(names: Iterable[str], total: Counter[str]) -> str:
    """'decoder, image_encoder (2 of 30)': the parts of these tensors, and how many of a part if not all."""
    counts = Counter(_part(name) for name in names)
    return ", ".join(
        part if count == total.get(part, count) else f"{part} ({count} of {total[part]})"
        for part, count in counts.items()
    )
