"""The model and the tokenizer of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from velm.checkpoint.content import Checkpoint
from velm.errors import CheckpointError
from velm.model import VisionLanguageModel, build_model
from velm.pretrained.weights import skip_pretrained
from velm.registry import tokenizers
from velm.registry.manifest import require_parts
from velm.version import __version__

if TYPE_CHECKING:
    from velm.data.text.base import Tokenizer

__all__ = ["build_from_checkpoint", "build_tokenizer", "compare_weights"]


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
