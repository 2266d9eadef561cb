"""Every part that VELM brings keeps the contract that it asks of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import RNN_DECODERS, TRANSFORMER_DECODERS

from velm.registry import Registry, datasets, decoders, image_encoders, losses, text_encoders, tokenizers
from velm.testing import assert_contract

GIVEN = {"vocab_size": 32, "pad_id": 0, "memory_dim": 16, "embed_dim": 8}
TINY_TRANSFORMER = {"name": "transformer", "dim": 16, "depth": 2, "heads": 2}
CELLS, BOTH = ("tanh", "gru", "lstm"), (False, True)
OURS: list[tuple[Registry, dict[str, Any]]] = [
    *(
        (image_encoders, {"name": "cnn", "dim": 16, "depth": 1, "architecture": a, "norm": n, "pooling": p})
        for a in ("residual", "plain")
        for n in ("group", "batch", "none")
        for p in ("max", "mean", "attention")
    ),
    *(
        (image_encoders, {"name": "vit", "dim": 24, "depth": 2, "positions": x, "position_grid": 4, "pooling": p})
        for x in ("sine", "learned")
        for p in ("class", "mean", "attention")
    ),
    (image_encoders, {"name": "torchvision/resnet18", "features": "layer2"}),
    (image_encoders, {"name": "torchvision/mobilenet_v2", "features": "features.4", "dim": 16, "trainable": "none"}),
    *((image_encoders, {"name": f"timm/{name}"}) for name in ("test_vit", "test_resnet", "test_convnext")),
    (image_encoders, {"name": "timm/test_vit", "pooling": "class"}),
    (image_encoders, {"name": "timm/test_resnet", "trainable": 1}),
    (image_encoders, {"name": "timm/test_vit3", "pooling": "own", "global_pool": "map"}),
    (image_encoders, {"name": "timm/test_convnext", "pooling": "own", "dim": 12}),
    *(
        (image_encoders, {"name": "attentional", "dim": 8, "queries": 5, "heads": 2, "encoder": encoder})
        for encoder in (
            {"name": "vit", "dim": 24, "depth": 1, "pooling": "class"},
            {"name": "cnn", "dim": 16, "depth": 1},
        )
    ),
    *(
        (text_encoders, {"name": "rnn", "dim": 16, "layers": 2, "cell": c, "bidirectional": b})
        for c in CELLS
        for b in BOTH
    ),
    *(
        (text_encoders, {"name": "rnn", "dim": 16, "layers": 2, "pooling": p, "bidirectional": b})
        for p in ("mean", "max", "attention")
        for b in BOTH
    ),
    *(
        (text_encoders, {**TINY_TRANSFORMER, "pooling": p, "causal": c, "positions": x})
        for p in ("mean", "last", "first", "attention")
        for c in BOTH
        for x in ("learned", "sine")
        if not (c and p == "first")
    ),
    *((decoders, {"name": "rnn", "dim": 16, **options}) for options in RNN_DECODERS),
    *((decoders, {**TINY_TRANSFORMER, **options}) for options in TRANSFORMER_DECODERS),
    *((losses, {"name": name}) for name in ("contrastive", "sigmoid", "triplet", "captioning", "scst")),
    *((losses, {"name": "distillation", "teacher": "a.ckpt", "teacher_dim": d}) for d in (None, 8)),
    *((tokenizers, {"name": name}) for name in ("word", "bpe", "byte")),
    (datasets, {"name": "shapes"}),
]


def _title(part: Any) -> str:
    return (
        part.kind
        if isinstance(part, Registry)
        else "-".join(str(value) for key, value in part.items() if key != "config")
    )


@pytest.mark.parametrize(("registry", "spec"), OURS, ids=_title)
def test_every_part_of_our_own_keeps_the_contract(registry: Registry, spec: dict[str, Any]) -> None:
    if spec["name"].startswith("timm/"):
        pytest.importorskip("timm", reason="timm is an extra: pip install velm[timm]")
    given = {} if registry is tokenizers else GIVEN
    options = {"image_size": 32} if spec["name"].startswith("torchvision/") else {}  # pixels; for speed
    assert_contract(lambda: registry.build(spec, **given), **options)


@pytest.mark.parametrize("encoder", ["cnn", "vit", "rnn", "transformer"])
def test_dropout_is_active_in_training(encoder: str) -> None:
    torch.manual_seed(0)
    if encoder in ("cnn", "vit"):
        module, inputs = (
            image_encoders.build({"name": encoder, "dim": 16, "dropout": 0.5}),
            (torch.randn(2, 3, 32, 32),),
        )
    else:
        module = text_encoders.build({"name": encoder, "dim": 16, "dropout": 0.5}, vocab_size=32, pad_id=0)
        inputs = torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    assert not torch.equal(module.train()(*inputs).pooled, module(*inputs).pooled)
