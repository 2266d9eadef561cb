"""VELM: vision-enhanced language modelling. Plug in encoders, align, caption.

The public names below are looked up when first used, so that `import velm` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from velm.version import __version__

if TYPE_CHECKING:
    from velm import decoders as decoders
    from velm import losses as losses
    from velm import metrics as metrics
    from velm import onnx as onnx
    from velm.backbone import load_backbone as load_backbone
    from velm.data.base import Dataset as Dataset
    from velm.data.base import Record as Record
    from velm.data.text.base import Tokenizer as Tokenizer
    from velm.decoders.base import Decoder as Decoder
    from velm.encoders.base import EncoderOutput as EncoderOutput
    from velm.encoders.base import ImageEncoder as ImageEncoder
    from velm.encoders.base import TextEncoder as TextEncoder
    from velm.exports import export as export
    from velm.exports import from_pretrained as from_pretrained
    from velm.exports import push_to_hub as push_to_hub
    from velm.losses.base import Loss as Loss
    from velm.model import VisionLanguageModel as VisionLanguageModel
    from velm.model import build_model as build_model
    from velm.pipeline import Pipeline as Pipeline
    from velm.pipeline import load as load
    from velm.registry import balancing_policies as balancing_policies
    from velm.registry import datasets as datasets
    from velm.registry import image_encoders as image_encoders
    from velm.registry import text_encoders as text_encoders
    from velm.registry import tokenizers as tokenizers


_MODULES = {
    "velm.backbone": ("load_backbone",),
    "velm.encoders.base": ("ImageEncoder", "TextEncoder"),
    "velm.outputs": ("EncoderOutput",),
    "velm.decoders.base": ("Decoder",),
    "velm.exports": ("export", "from_pretrained", "push_to_hub"),
    "velm.losses.base": ("Loss",),
    "velm.data.base": ("Dataset", "Record"),
    "velm.data.text.base": ("Tokenizer",),
    "velm.model": ("VisionLanguageModel", "build_model"),
    "velm.pipeline": ("Pipeline", "load"),
    "velm.registry": ("balancing_policies", "image_encoders", "text_encoders", "datasets", "tokenizers"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_PACKAGES = ("decoders", "losses", "metrics", "onnx")
__all__ = ["__version__", *_PACKAGES, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"velm.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'velm' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
