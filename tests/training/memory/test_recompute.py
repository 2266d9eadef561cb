"""Blocks are found in towers of any origin; checkpointed, they keep little and change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.memory.test_micro_batch import LOSSES, Alone, Saved, assert_same, step, whole_batch
from velm.errors import ConfigError
from velm.registry import decoders, image_encoders, text_encoders
from velm.training.memory.recompute import blocks_of, checkpoint_blocks
from velm.training.task import VisionLanguageTask


def make_task(**changes: Any) -> VisionLanguageTask:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "image_encoder": {"name": "vit", "dim": 16, "depth": 2, "heads": 2, "patch_size": 8, "dropout": 0.3},
        "text_encoder": {"name": "transformer", "dim": 16, "depth": 2, "heads": 2, "dropout": 0.3},
        "decoder": {"name": "transformer", "dim": 16, "depth": 2, "heads": 2, "dropout": 0.3},
        "embed_dim": 8,
        "vocab_size": 20,
        "losses": LOSSES["joint"],
    }
    return VisionLanguageTask(**{**options, **changes})


@pytest.mark.parametrize(
    ("spec", "blocks", "kind"),
    [
        ({"name": "vit", "dim": 16, "depth": 3, "heads": 2}, 3, "TransformerBlock"),
        ({"name": "torchvision/resnet18"}, 8, "BasicBlock"),
        ({"name": "torchvision/mobilenet_v2"}, 19, "InvertedResidual"),
        ({"name": "torchvision/vit_b_16"}, 12, "EncoderBlock"),
    ],
)
def test_blocks_of_image_encoders(spec: dict[str, Any], blocks: int, kind: str) -> None:
    with torch.device("meta"):
        found = [type(block).__name__ for block in blocks_of(image_encoders.build(spec))]
    assert len(found) == blocks
    assert kind in found


def test_blocks_of_timm() -> None:
    pytest.importorskip("timm")
    encoder = image_encoders.build({"name": "timm/vit_tiny_patch16_224", "pretrained": False})
    assert [type(block).__name__ for block in blocks_of(encoder)] == ["Block"] * 12


def test_an_rnn_has_none() -> None:
    assert not list(blocks_of(text_encoders.build({"name": "rnn"}, vocab_size=9, pad_id=0)))
    assert not list(blocks_of(decoders.build({"name": "rnn"}, vocab_size=9, pad_id=0, memory_dim=8)))
    assert not list(blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))))


@pytest.mark.parametrize("micro", [None, 3])
def test_checkpointed_blocks_give_the_same_gradients_with_the_same_dropout(micro: int | None) -> None:
    expected = step(make_task(micro_batch_size=micro), whole_batch())
    assert_same(step(make_task(micro_batch_size=micro, checkpoint_blocks=True), whole_batch()), expected)


def test_the_names_of_the_weights_stay() -> None:
    assert make_task(checkpoint_blocks=True).state_dict().keys() == make_task().state_dict().keys()


def test_what_is_inside_a_block_is_not_kept() -> None:
    kept = []
    for checkpointed in (False, True):
        task = make_task(checkpoint_blocks=checkpointed)
        task._trainer = Alone()  # type: ignore[assignment]
        with Saved() as saved:
            task.compute_losses(whole_batch())
        kept.append(saved.numbers)
    assert kept[1] < kept[0] / 2


def test_batch_norm_counts_a_batch_once() -> None:
    statistics: list[dict[str, Tensor]] = []
    for checkpointed in (False, True):
        task = make_task(image_encoder={"name": "torchvision/resnet18"}, checkpoint_blocks=checkpointed)
        step(task, whole_batch(), torch.float32)
        statistics.append({name: b for name, b in task.model.named_buffers() if name.endswith(("_mean", "_tracked"))})
    assert statistics[0]
    for name, value in statistics[0].items():
        torch.testing.assert_close(statistics[1][name], value, msg=lambda m, n=name: f"{n}: {m}")


def test_nothing_is_computed_twice_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velm.training.memory.recompute.checkpoint", None)
    task = make_task(checkpoint_blocks=True)
    with torch.no_grad():
        task.model(whole_batch())


def test_towers_without_blocks_are_refused() -> None:
    rnn = text_encoders.build({"name": "rnn"}, vocab_size=9, pad_id=0)
    with pytest.raises(ConfigError, match="no repeated blocks"):
        checkpoint_blocks({"text_encoder": rnn})
