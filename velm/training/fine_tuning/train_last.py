"""`model.train_last`: only the last blocks of a tower are trained, and what follows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from velm.errors import ConfigError
from velm.training.fine_tuning.depth import parameter_depths, repeated_blocks

__all__ = ["eval_frozen_layers", "freeze_all_but_last"]


def freeze_all_but_last(
    towers: Mapping[str, nn.Module], counts: Mapping[str, int], frozen: Collection[str] = ()
) -> None:
    """Freeze the embeddings and all blocks but the last ones; norms, pooling and heads behind the blocks are trained.

    Nothing that is frozen already, by the option `trainable` of an encoder, is trained again.

    Args:
        towers: by name.
        counts: number of trained blocks by the name of a tower; 0: only what follows the blocks.
        frozen: towers that are frozen as a whole.

    Raises:
        ConfigError: there is no such tower, it is in `frozen`, it has no blocks, or not that many trainable ones.
    """
    for name, count in counts.items():
        option = f"model.train_last.{name}"
        if name not in towers:
            raise ConfigError(f"model.train_last names {name!r}; the model's parts are {', '.join(towers)}.")
        if name in frozen:
            raise ConfigError(
                f"model.freeze and model.train_last both name {name}: take it out of model.freeze to train its last "
                f"blocks, or out of model.train_last to train nothing of it."
            )
        tower = towers[name]
        blocks = repeated_blocks(tower)
        if not blocks:
            raise ConfigError(
                f"{option} is {count}, but {type(tower).__name__} has no repeated blocks: leave it out to train all of "
                f"the {name}, or freeze it by model.freeze."
            )
        if not 0 <= count <= len(blocks):
            raise ConfigError(
                f"{option} is {count}, and {type(tower).__name__} has {len(blocks)} blocks: give a number from 0 (only "
                f"what follows the blocks) to {len(blocks)} (all but the embeddings)."
            )
        last = blocks[len(blocks) - count :]
        if count and not any(parameter.requires_grad for block in last for parameter in block.parameters()):
            raise ConfigError(
                f"{option} is {count}, but these blocks are frozen by an option of the {name}, such as `trainable`: "
                f"leave one of the two out."
            )
        depths = parameter_depths(tower)
        for parameter_name, parameter in tower.named_parameters():
            if depths[parameter_name] <= len(blocks) - count:
                parameter.requires_grad_(False)


def eval_frozen_layers(tower: nn.Module, count: int) -> None:
    """Put what comes before the last `count` blocks into eval mode: no dropout, fixed batch statistics."""
    blocks = repeated_blocks(tower)
    if count:
        _eval_before(tower, blocks[len(blocks) - count])
    else:
        _eval_before(tower, blocks[-1])
        blocks[-1].eval()


def _eval_before(module: nn.Module, stop: nn.Module) -> None:
    """Put every submodule that is registered before `stop`, which is one of them, into eval mode."""
    for child in module.children():
        if child is stop:
            return
        if any(part is stop for part in child.modules()):
            _eval_before(child, stop)
            return
        child.eval()
