"""Checkpoints that leave out the weights of their base: adapters, and what was trained beside them, in a few MB.

The entry "velm" of such a file has one more key, "base":

    source     what `model.pretrained` named; without it the model config, in JSON, whose parts name weights
    path       of the source, from the folder of the file; None if it is no local file
    absolute   of the source; None if it is no local file
    names      tensors of "state_dict" that are left out
    sha256     of the base's tensors of these names
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm.errors import CheckpointError

__all__ = ["PARTIAL", "fill_in", "leave_out"]

PARTIAL = 2
"""Format of the "velm" entry of a file that leaves weights out; complete ones have format 1."""
_KEPT = ("epoch", "global_step", "pytorch-lightning_version")
_STATES = ("state_dict", "current_model_state")


def leave_out(
    content: Mapping[str, Any], *, base: Mapping[str, Tensor], source: str, folder: str | os.PathLike[str]
) -> dict[str, Any]:
    """The content of a checkpoint file without the tensors that its base holds, and without the optimizer's state.

    Args:
        content: of a complete file, as training writes it.
        base: weights of the source, by their names in a state dict without adapters.
        source: names the base, see above.
        folder: where the file will be written.
    """
    states = {name: content[name] for name in _STATES if name in content}
    names = [
        name for name, tensor in content["state_dict"].items()
        if all(_is_in(base, name, state[name]) for state in states.values())
    ]  # fmt: skip
    file = None if source.startswith("{") else Path(source).expanduser()
    local = file.resolve() if file is not None and file.is_file() else None
    about = {
        "source": source,
        "path": None if local is None or "://" in str(folder) else os.path.relpath(local, folder),
        "absolute": None if local is None else str(local),
        "names": names,
        "sha256": _fingerprint(base, names),
    }
    left_out = set(names)
    rest = {key: {n: t for n, t in state.items() if n not in left_out} for key, state in states.items()}
    kept = {key: content[key] for key in _KEPT if key in content}
    return {**kept, **rest, "velm": {**content["velm"], "format": PARTIAL, "base": about}}


def fill_in(
    content: Mapping[str, Any], path: str | os.PathLike[str], open_base: Callable[[str], Mapping[str, Tensor]]
) -> dict[str, Any]:
    """The content of a file that leaves out weights, with those of its base; of other files the content as it is.

    Args:
        content: of the file.
        path: of the file.
        open_base: from a path or the text of `model.pretrained` to the weights of that source.

    Raises:
        CheckpointError: the base cannot be opened, or is another than that of the training.
    """
    about = (content.get("velm") or {}).get("base")
    if about is None:
        return dict(content)
    of_parts = about["source"].startswith("{")
    base_name = "the pretrained weights of its parts" if of_parts else about["source"]
    beside = None if about["path"] is None else Path(path).parent / about["path"]
    files = [str(file) for file in (beside, about["absolute"]) if file is not None and Path(file).is_file()]
    found = {}
    for place in dict.fromkeys(files or [about["source"]]):
        try:
            base = open_base(place)
        except CheckpointError as error:
            raise CheckpointError(f"{path} leaves out the weights of its base, {base_name}. {error}") from error
        found[place] = _fingerprint(base, about["names"])
        if found[place] == about["sha256"]:
            names = {name: base[_plain(name)] for name in about["names"]}
            return {**content, **{key: {**content[key], **names} for key in _STATES if key in content}}
    place, other = next(iter(found.items()))
    where = "what they name now" if of_parts else place
    raise CheckpointError(
        f"{path} was trained on {base_name} (sha256 {about['sha256'][:12]}), and {where} has other weights of the same "
        f"names (sha256 {other[:12]}). Put back the base of the training, or name it, to write a complete checkpoint: "
        f"velm merge {path} --base BASE --output merged.ckpt"
    )


def _is_in(base: Mapping[str, Tensor], name: str, tensor: Tensor) -> bool:
    given = base.get(_plain(name))
    return given is not None and given.shape == tensor.shape and torch.equal(given.to(tensor), tensor)


def _plain(name: str) -> str:
    """The name of a tensor in a model without adapters."""
    return name.replace(".base_layer.", ".")


def _fingerprint(weights: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors; a missing one counts as nothing."""
    digest = hashlib.sha256()
    for name in sorted({_plain(name) for name in names}):
        if name in weights:
            tensor = weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
