"""Shared by the rooms' tests: a tiny model and the checkpoint of it, as training would write it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

TINY_TEXTS = ("a red circle", "a small blue square", "a large green ring left of a red star")


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    """The config of a model that aligns and writes; its vocabulary is that of `write_checkpoint`."""
    return {
        "image_encoder": {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8},
        "text_encoder": {"name": "rnn", "dim": 16},
        "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2, "max_length": 24},
        "embed_dim": 8,
        "memory": ["image"],
        "losses": {"contrastive": {}, "captioning": {}},
    }


@pytest.fixture
def write_checkpoint(tmp_path: Path, tiny_config: dict[str, Any]) -> Callable[..., Path]:
    """`write_checkpoint(name, data=..., target=..., extra=..., logit_scale=..., **changes to the config) -> path`."""

    def write(
        name: str = "tiny.ckpt",
        data: dict[str, Any] | None = None,
        target: bool = False,
        extra: dict[str, Any] | None = None,
        logit_scale: float | None = math.exp(2.0),
        **changes: Any,
    ) -> Path:
        from velm.checkpoint import pack
        from velm.data.text.word import WordTokenizer
        from velm.model import build_model

        tokenizer = WordTokenizer()
        tokenizer.train(TINY_TEXTS)
        config = {**tiny_config, "vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, **changes}
        torch.manual_seed(0)
        model = build_model(config)
        entry = pack(
            model=model,
            config=config,
            tokenizer=tokenizer,
            tokenizer_name="word",
            transform={"image_size": 32, "resize": "crop"},
            max_length=16,
            data=data or {"dataset": {"name": "shapes", "test_size": 6, "image_size": 32}},
            target=target,
            logit_scale=logit_scale,
        )
        weights = {f"model.{key}": value for key, value in model.state_dict().items()}
        weights["losses.contrastive.log_scale"] = torch.tensor(2.0)
        torch.save({"state_dict": weights, "velm": entry, **(extra or {})}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def pipeline(write_checkpoint: Callable[..., Path]) -> Any:
    """The pipeline of `write_checkpoint()`: it aligns and captions."""
    from velm.pipeline import load

    return load(write_checkpoint())
