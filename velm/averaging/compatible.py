"""Whether checkpoints are of one model, so that the mean of their weights means something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from velm.checkpoint import Checkpoint, build_tokenizer, compare_weights
from velm.errors import CheckpointError
from velm.registry import KINDS, parameters, split_config
from velm.registry.manifest import require_parts

__all__ = ["require_same_model"]

PARTS = ("image_encoder", "text_encoder", "decoder")
TRAINING = ("trainable", "pretrained", "weights")
"""Options of a part that decide how it is trained or where its weights come from; so do those with 'drop' in them."""
OTHER = (*PARTS, "losses", "plugins", "vocab_size", "pad_id", "embed_dim")
"""Keys of a model config that are no options of a joint model, or that shapes and tokenizers decide."""
ONE_MODEL = "Average checkpoints of one architecture, such as fine-tuned copies of one model."
MISSING = object()


def require_same_model(checkpoints: Sequence[Checkpoint]) -> None:
    """Compare each checkpoint with the last one.

    Raises:
        CheckpointError: the first difference: of the tokenizers, of a weight's name or shape, of an option that
            changes what the weights do, of a buffer of integers.
    """
    last = checkpoints[-1]
    for other in checkpoints[:-1]:
        problem = _tokenizers(last, other) or _weights(last, other) or _options(last, other) or _integers(last, other)
        if problem is not None:
            raise CheckpointError(f"{other.path} and {last.path} cannot be averaged: {problem}")


def _tokenizers(last: Checkpoint, other: Checkpoint) -> str | None:
    if last.tokenizer == other.tokenizer:
        return None
    theirs, ours = build_tokenizer(other), build_tokenizer(last)
    words, known = theirs.vocabulary(), ours.vocabulary()
    special = [[getattr(each, name) for name in ("pad_id", "bos_id", "eos_id", "unk_id")] for each in (theirs, ours)]
    if words and words == known and special[0] == special[1] and theirs.vocab_size == ours.vocab_size:
        return None
    same = f", of which {len(words.keys() & known.keys())} are common" if words and known else ""
    return (
        f"their tokenizers differ ({other.tokenizer['name']} of {theirs.vocab_size} tokens, {last.tokenizer['name']} "
        f"of {ours.vocab_size}{same}), so that an id is another token in each. Fine-tune with a tokenizer that does "
        f"not depend on the data (data.tokenizer: byte, or hf/...), or on captions with the same words."
    )


def _weights(last: Checkpoint, other: Checkpoint) -> str | None:
    missing, left_over, shapes = compare_weights(last.weights, other.weights)
    differences = [f"{name} is in the second only" for name in missing]
    differences += [f"{name} is in the first only" for name in left_over]
    differences += [
        f"{name} is {first} in the first and {second} in the second" for name, (first, second) in shapes.items()
    ]
    if not differences:
        return None
    more = f", and {len(differences) - 1} more differ" if len(differences) > 1 else ""
    return f"{differences[0]}{more}. {ONE_MODEL}"


def _options(last: Checkpoint, other: Checkpoint) -> str | None:
    """The first option that has another value; one that is not stored has its default."""
    pairs = [(name, other.config.get(name, MISSING), last.config.get(name, MISSING)) for name in last.config]
    differences = [(name, a, b) for name, a, b in pairs if name not in OTHER and MISSING not in (a, b)]
    for part in PARTS:
        theirs, ours = (_part_options(each, part) for each in (other, last))
        differences += [(f"{part}.{name}", theirs.get(name), ours[name]) for name in ours]
    for name, first, second in differences:
        if not _equal(name, first, second):
            return (
                f"{name} is {first!r} in the first and {second!r} in the second, so that equal weights compute "
                f"something else. {ONE_MODEL}"
            )
    return None


def _part_options(checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    """The options of a part with their defaults; {} if there is no such part."""
    config = checkpoint.config.get(part)
    if config is None:
        return {}
    require_parts(checkpoint.plugins, checkpoint.config.get("plugins") or [], {part: config}, str(checkpoint.path))
    name, options = split_config(config, part)
    arguments = parameters(KINDS[f"{part}s"].get(name))
    defaults = {key: p.default for key, p in arguments.items() if p.default is not p.empty and key != "pad_id"}
    return {**defaults, **options}


def _equal(name: str, first: Any, second: Any) -> bool:
    key = name.rpartition(".")[2]
    if "drop" in key or key in TRAINING:
        return True
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return all(_equal(each, first[each], second[each]) for each in first.keys() & second.keys())
    plain = [list(value) if isinstance(value, list | tuple) else value for value in (first, second)]
    return bool(plain[0] == plain[1])


def _integers(last: Checkpoint, other: Checkpoint) -> str | None:
    """The first buffer of integers that differs, apart from a batch norm's number of batches."""
    for name, tensor in last.weights.items():
        counts = name.endswith("num_batches_tracked")
        if not tensor.is_floating_point() and not counts and not torch.equal(tensor, other.weights[name]):
            return f"{name} holds other integers in each, which have no mean. {ONE_MODEL}"
    return None
