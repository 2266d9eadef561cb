"""`model.optimizer.layer_decay`: lower blocks of a tower learn at a lower rate.

Layer-wise learning-rate decay (ELECTRA, Clark et al. 2020, arXiv 2003.10555; the exponents are those of BEiT, Bao et
al. 2021, arXiv 2106.08254).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from velm.errors import ConfigError
from velm.training.fine_tuning.depth import parameter_depths, repeated_blocks

__all__ = ["decay_of_parts", "parameters_by_rate"]

ENCODERS = ("image_encoder", "text_encoder")


def decay_of_parts(
    modules: Mapping[str, nn.Module], layer_decay: float | Mapping[str, float] | None
) -> dict[str, float]:
    """The decay of each part that has one.

    Args:
        modules: the parts by name.
        layer_decay: by part; a number is that of the encoders that have repeated blocks; None: no decay.

    Raises:
        ConfigError: a name is no part, or there are no repeated blocks.
    """
    if layer_decay is None:
        return {}
    if not isinstance(layer_decay, Mapping):
        encoders = [name for name in ENCODERS if name in modules and repeated_blocks(modules[name])]
        if not encoders:
            raise ConfigError(
                f"optimizer.layer_decay is {layer_decay}, and no encoder has repeated blocks: set it to null and give "
                f"parts a rate by optimizer.lr_scale."
            )
        return dict.fromkeys(encoders, layer_decay)
    for name in layer_decay:
        if name not in modules:
            raise ConfigError(f"optimizer.layer_decay names {name!r}; the parts are {', '.join(modules)}.")
        if not repeated_blocks(modules[name]):
            raise ConfigError(
                f"optimizer.layer_decay names {name}, but {type(modules[name]).__name__} has no repeated blocks: give "
                f"it a rate by optimizer.lr_scale."
            )
    return dict(layer_decay)


def parameters_by_rate(
    name: str, part: nn.Module, decay: float | None = None
) -> list[tuple[str, float, list[nn.Parameter]]]:
    """The parameters of a part that share a learning rate: a name, a factor on the part's rate, the parameters.

    Block i of n, the first being 0, has the factor decay ** (n - i), the embeddings below it decay ** (n + 1); what
    follows the blocks keeps the part's rate and its name. The others are called 'image_encoder/layer0' (embeddings),
    'image_encoder/layer1' (the first block), ...

    Args:
        name: of the part.
        part: with repeated blocks, if `decay` is given.
        decay: None: all parameters have the part's rate.
    """
    if decay is None:
        return [(name, 1.0, list(part.parameters()))]
    depths, top = parameter_depths(part), len(repeated_blocks(part)) + 1
    layers: dict[int, list[nn.Parameter]] = {}
    for parameter_name, parameter in part.named_parameters():
        layers.setdefault(depths[parameter_name], []).append(parameter)
    return [
        (name if depth == top else f"{name}/layer{depth}", decay ** (top - depth), layers[depth])
        for depth in sorted(layers)
    ]
