"""The identity of a model: a hash of everything that its embeddings and captions depend on."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from velm.pipeline.pipeline import Pipeline

__all__ = ["model_hash"]


def model_hash(pipeline: Pipeline) -> str:
    """64 hexadecimal digits: the modules' classes, the weights, the tokenizer, the image transform, the text length.

    Weights are rounded to bfloat16 first, so that a model has one hash in each precision and on each device.
    """
    digest = hashlib.sha256()
    for name, module in pipeline.model.named_modules():
        digest.update(f"{name}:{type(module).__module__}.{type(module).__qualname__}\n".encode())
    for name, value in sorted(pipeline.model.state_dict().items()):
        if isinstance(value, Tensor):
            stored = value.detach().to(torch.bfloat16) if value.is_floating_point() else value.detach()
            digest.update(f"{name} {stored.dtype} {tuple(stored.shape)}\n".encode())
            digest.update(stored.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r}\n".encode())
    options = {"transform": pipeline.transform.config(), "length": pipeline.max_length}
    digest.update(json.dumps(options, sort_keys=True, default=str).encode())
    digest.update(json.dumps(pipeline.tokenizer.state(), sort_keys=True, default=str).encode())
    return digest.hexdigest()
