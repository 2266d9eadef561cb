"""The memory of a step: against what is known by hand, and a step that fails is named."""

from __future__ import annotations

from typing import Any

import pytest

from velm.data.text.bpe import ByteTokenizer
from velm.doctor.memory import kept_bytes, memory, probe
from velm.losses.weighted import build_losses
from velm.model import build_model


def built(config: dict[str, Any]) -> tuple[Any, Any]:
    model = build_model({**config, "vocab_size": ByteTokenizer().vocab_size, "pad_id": 0})
    return model.train(), build_losses(config["losses"])


def probes(image_size: int = 32, **options: Any) -> Any:
    return tuple(probe(n, tokenizer=ByteTokenizer(), length=9, image_size=image_size, **options) for n in (2, 4))


def test_weights_gradients_and_moments_are_counted(tiny_config: dict[str, Any]) -> None:
    model, losses = built(tiny_config)
    model.image_encoder.requires_grad_(False)
    finding = memory(model, losses, probes=probes(), size=8, average=True)
    sizes = [(4 * p.numel(), p.requires_grad) for p in (*model.parameters(), *losses.parameters())]
    learnt = sum(size for size, trained in sizes if trained)
    assert finding.severity == "info"
    assert finding.value["weights"] == 2 * sum(size for size, _ in sizes)
    assert finding.value["gradients"] == learnt
    assert finding.value["optimizer"] == 2 * learnt
    assert "activations measured on 2 and 4 images and continued to 8" in finding.message


def test_the_line_goes_through_what_a_larger_batch_keeps(tiny_config: dict[str, Any]) -> None:
    model, losses = built(tiny_config)
    told = memory(model, losses, probes=probes(), size=16).value["activations"]
    kept = kept_bytes(model, losses, probe(16, tokenizer=ByteTokenizer(), length=9, image_size=32))
    assert told == pytest.approx(kept, rel=0.05)


def test_frozen_parts_keep_less_and_half_precision_too(tiny_config: dict[str, Any]) -> None:
    model, losses = built(tiny_config)
    whole = memory(model, losses, probes=probes(), size=8).value
    half = memory(model, losses, probes=probes(), size=8, precision="bf16-true").value
    assert half["total"] == pytest.approx(whole["total"] / 2, rel=0.01)
    model.image_encoder.requires_grad_(False)
    assert memory(model, losses, probes=probes(), size=8).value["activations"] < whole["activations"]


def test_a_step_that_fails_is_an_error(tiny_config: dict[str, Any]) -> None:
    model, losses = built(tiny_config)
    finding = memory(model, losses, probes=probes(image_size=30), size=8)  # 30 pixels, patches of 8
    assert finding.severity == "error"
    assert finding.message.startswith("A step of 2 images fails: ")


def test_a_probe_looks_like_a_batch() -> None:
    batch = probe(3, tokenizer=ByteTokenizer(), length=5, image_size=16, per_image=2, has_target=True)
    assert batch.images is not None
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.tokens is not None
    assert batch.tokens[0].tolist() == [1, 4, 4, 4, 2]
    assert batch.image_ids.tolist() == batch.image_rows.tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
    assert batch.target_tokens is not None
    assert probe(3, tokenizer=ByteTokenizer(), length=5, image_size=None).images is None
