"""Every part that VELM brings keeps the contract that it asks of others."""

from __future__ import annotations

from typing import Any

import pytest

from velm.registry import Registry, datasets, decoders, image_encoders, losses, text_encoders, tokenizers
from velm.testing import assert_contract

GIVEN = {"vocab_size": 32, "pad_id": 0, "memory_dim": 16}
TINY_TRANSFORMER = {"name": "transformer", "dim": 16, "depth": 2, "heads": 2}
HF = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
HF_VISION = {**HF, "image_size": 64, "patch_size": 16}
HF_CLIP_TEXT = {**HF, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
OURS: list[tuple[Registry, dict[str, Any]]] = [
    *((image_encoders, {"name": "cnn", "dim": 16, "architecture": a}) for a in ("residual", "plain")),
    (image_encoders, {"name": "cnn", "dim": 16, "pooling": "attention"}),
    *((image_encoders, {"name": "vit", "dim": 24, "depth": 2, "pooling": p}) for p in ("class", "mean", "attention")),
    (image_encoders, {"name": "vit", "dim": 24, "depth": 1, "positions": "learned", "position_grid": 4}),
    (image_encoders, {"name": "torchvision/resnet18"}),
    (image_encoders, {"name": "torchvision/mobilenet_v2", "dim": 16, "trainable": "none"}),
    (image_encoders, {"name": "timm/test_vit", "pooling": "class"}),
    (image_encoders, {"name": "timm/test_resnet", "trainable": 1}),
    *(
        (image_encoders, {"name": f"hf/{kind}", "config": HF_VISION})
        for kind in ("vit", "clip_vision_model", "siglip_vision_model", "dinov2")
    ),
    *(
        (text_encoders, {"name": "rnn", "dim": 16, "cell": cell, "bidirectional": both})
        for cell in ("tanh", "gru", "lstm")
        for both in (False, True)
    ),
    *((text_encoders, {"name": "rnn", "dim": 16, "layers": 2, "pooling": p}) for p in ("mean", "max", "attention")),
    *((text_encoders, {**TINY_TRANSFORMER, "pooling": p}) for p in ("mean", "last", "first", "attention")),
    (text_encoders, {**TINY_TRANSFORMER, "positions": "sine", "causal": True, "pooling": "last"}),
    *((text_encoders, {"name": f"hf/{kind}", "config": HF}) for kind in ("bert", "roberta", "distilbert")),
    (text_encoders, {"name": "hf/clip_text_model", "config": HF_CLIP_TEXT}),
    *((decoders, {"name": "rnn", "dim": 16, "cell": cell}) for cell in ("lstm", "gru")),
    (decoders, {"name": "rnn", "dim": 16, "gate": True, "doubly_stochastic": 1.0}),
    (decoders, TINY_TRANSFORMER),
    (decoders, {**TINY_TRANSFORMER, "unimodal_depth": 1}),
    (decoders, {"name": "hf/gpt2", "config": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}}),
    (decoders, {"name": "hf/bert", "config": HF}),
    *((losses, {"name": name}) for name in ("contrastive", "sigmoid", "triplet", "captioning")),
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
