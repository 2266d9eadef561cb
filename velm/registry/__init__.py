"""A name becomes a class: the registries of every kind, validated options, plugins and the plugin manifest.

{name: vit, depth: 6} ── options.py: split, validate ── registry.py: find, import, build ── the built module
                                                           builtin.py: VELM's own names
                                                           plugins.py: entry points, modules, .py files
"""

from velm.registry.builtin import (
    KINDS,
    balancing_policies,
    datasets,
    decoders,
    image_encoders,
    losses,
    text_encoders,
    tokenizers,
)
from velm.registry.options import PartConfig, parameters, split_config
from velm.registry.plugins import load_plugins
from velm.registry.registry import Entry, Registry

__all__ = [
    "KINDS",
    "Entry",
    "PartConfig",
    "Registry",
    "balancing_policies",
    "datasets",
    "decoders",
    "image_encoders",
    "load_plugins",
    "losses",
    "parameters",
    "split_config",
    "text_encoders",
    "tokenizers",
]
