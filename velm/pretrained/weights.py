"""Reads weights files, and skips pretrained weights while a checkpoint, which holds all weights, is loaded.

An encoder or decoder from another library checks `pretrained_allowed()` before it opens a weights file or a hub. If it
can be rebuilt elsewhere only with other options (its config is in a local folder), it sets `portable_config`, options
that replace those of its part config in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_allowed: ContextVar[bool] = ContextVar("velm_pretrained_allowed", default=True)


@contextmanager
def skip_pretrained() -> Iterator[None]:
    """Context in which parts are built with random weights and no weights file or hub is opened."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def pretrained_allowed() -> bool:
    """False inside `skip_pretrained`."""
    return _allowed.get()


def portable_config(part: nn.Module) -> dict[str, Any]:
    """Options that override a part's config so that it can be built without its weights file or folder."""
    return dict(getattr(part, "portable_config", {}))


def names_weights(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a part config names pretrained weights: `weights`, `pretrained: true`, or hf/, llm/ without `config`."""
    if options.get("pretrained") is not None:
        return bool(options["pretrained"])
    return options.get("weights") is not None or (name.startswith(("hf/", "llm/")) and options.get("config") is None)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file, without wrapping 'state_dict' or 'model' keys and 'module.'.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a state dict, or a pickle with code (which is never run).
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {str(path)!r} (seen from {Path.cwd()}).")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:
        raise ValueError(
            f"{str(path)!r} cannot be read as a state dict of plain tensors ({type(cause).__name__}). Files that run "
            f"code when loaded are refused: save it again with torch.save(model.state_dict(), path)."
        ) from cause
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{str(path)!r} holds no state dict: a mapping of names to tensors is needed.")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_matching(module: nn.Module, state: dict[str, Tensor], *, known: set[str], what: str, source: str) -> None:
    """Load the tensors that `module` has, cast to its dtype; names in `known` that it lacks are ignored.

    Args:
        known: names of the complete model, of which `module` may be a part.

    Raises:
        ValueError: a tensor is missing, has another shape, or is not in `known`.
    """
    own = module.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - optional)
    unknown = sorted(state.keys() - known)
    if not missing and not unknown:
        module_state = {name: tensor for name, tensor in state.items() if name in own}
        try:
            module.load_state_dict(module_state, strict=False)
            return
        except RuntimeError as cause:  # the shapes
            raise ValueError(f"The weights {source!r} do not fit {what}: {cause}") from cause
    raise ValueError(
        f"The weights {source!r} do not fit {what}: {_few('missing', missing)}; {_few('not of this model', unknown)}. "
        f"Give the state dict of the same model, or leave the weights out."
    )


def _few(label: str, names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{label}: {shown} ({len(names)})" if names else f"{label}: none"
