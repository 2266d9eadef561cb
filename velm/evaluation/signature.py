"""The protocol of an evaluation as keys of metrics.json: what has to be equal for two metrics to be comparable.

"signature/velm:0.1.0": 1.0                          the value of a choice is 1
"signature/image_size": 224.0                        that of a number is the number
"signature/templates:open_clip:imagenet": 80.0       that of a list is its length
"signature/templates_sha256:4a5a7e2b9c1d": 1.0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from velm.data.images.transforms import EvalTransform
from velm.evaluation.prompts import ClassNames, Templates
from velm.version import __version__

__all__ = ["signature_of"]

PREFIX = "signature/"
TRANSFORM = ("image_size", "resize", "interpolation", "decode", "crop_rounding")
"""Options of an image transform, defaults included: a default may change."""


def signature_of(
    *,
    transform: EvalTransform,
    texts_per_image: int | None = None,
    tokenize: str | None = None,
    generation: Mapping[str, Any] | None = None,
    templates: Templates | None = None,
    class_names: ClassNames | None = None,
) -> dict[str, float]:
    """The keys and values of a protocol.

    Args:
        transform: of the images; each of `TRANSFORM` is a key.
        texts_per_image: captions of an image in the retrieval gallery; None: all.
        tokenize: tokenization of the captions; None: there are none.
        generation: options of the captions that were given, as text.
        templates: of zero-shot classification; None: it was not computed.
        class_names: likewise; None: the dataset's own.
    """
    protocol: dict[str, Any] = {"velm": __version__, "texts_per_image": texts_per_image}
    protocol |= {name: getattr(transform, name) for name in TRANSFORM}
    if tokenize is not None:
        protocol |= {"tokenize": tokenize, **(generation or {})}
    values = dict(_entry(name, value) for name, value in protocol.items() if value is not None)
    if templates is not None:
        source = "data" if class_names is None else class_names.source
        values[f"{PREFIX}templates:{templates.source}"] = float(len(templates.texts))
        values[f"{PREFIX}templates_sha256:{templates.digest}"] = 1.0
        values[f"{PREFIX}class_names:{source}"] = 1.0 if class_names is None else float(len(class_names.names))
    return values


def _entry(name: str, value: Any) -> tuple[str, float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{PREFIX}{name}", float(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{PREFIX}{name}", float(len(value))
    return f"{PREFIX}{name}:{value}", 1.0
