"""The identity of a model: a hash that tells whether embeddings and captions come from the same one."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from velm.pipeline.pipeline import Pipeline

__all__ = ["model_hash"]


def model_hash(pipeline: Pipeline) -> str:
    """SHA-256 of the weights, the tokenizer and the image transform, in hexadecimal digits.

    Equal for the precisions '32' and 'bf16' and on every device: weights count as rounded to bfloat16.
    """
    read = {"transform": vars(pipeline.transform), "tokenizer": pipeline.tokenizer.state(), "to": pipeline.max_length}
    digest = hashlib.sha256(json.dumps(read, sort_keys=True, default=repr).encode())
    for name, value in sorted(pipeline.model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            rounded = value.detach().to(torch.bfloat16) if value.is_floating_point() else value.detach()
            digest.update(str(tuple(value.shape)).encode())
            digest.update(rounded.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
