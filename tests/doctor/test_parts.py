"""Parameters, learning rates, maximum lengths and memory, by part."""

from __future__ import annotations

import pytest
from torch import nn

from velm.doctor.parts import is_pretrained, learning_rates, lengths, memory, parameters
from velm.planning.step import Costs, Setup


def test_parameters_by_part() -> None:
    frozen = nn.Linear(9, 10)
    frozen.requires_grad_(False)
    finding = parameters({"image_encoder": frozen, "decoder": nn.Linear(99, 20), "dropout": nn.Dropout()})
    assert finding.value == {
        "image_encoder": {"trainable": 0, "frozen": 100},
        "decoder": {"trainable": 2000, "frozen": 0},
    }
    assert finding.message == "2k (+ 100 frozen) parameters: image_encoder 0 (+ 100 frozen), decoder 2k."
    nothing = parameters({"image_encoder": frozen})
    assert nothing.severity == "error"
    assert nothing.message.startswith("Nothing is trainable.")


@pytest.mark.parametrize(
    ("config", "pretrained"),
    [
        ({"name": "torchvision/resnet18", "weights": "DEFAULT"}, True),
        ({"name": "torchvision/resnet18"}, False),
        ({"name": "timm/resnet18", "pretrained": True}, True),
        ({"name": "timm/resnet18", "pretrained": False}, False),
        ("hf/bert-base-uncased", True),
        ("llm/some/model", True),
        ({"name": "llm/llama", "config": {"hidden_size": 8}}, False),
        ({"name": "hf/bert", "config": {"hidden_size": 8}}, False),
        ({"name": "hf/bert", "config": {"hidden_size": 8}, "pretrained": True}, True),
        ("vit", False),
        (None, False),
    ],
)
def test_which_configs_are_pretrained(config: object, pretrained: bool) -> None:
    assert is_pretrained(config) is pretrained


def test_a_high_learning_rate_of_a_pretrained_part_is_a_warning() -> None:
    configs = {"image_encoder": "hf/some/vit", "text_encoder": "rnn", "decoder": None}
    parts = {"image_encoder": nn.Linear(2, 2), "text_encoder": nn.Linear(2, 2), "decoder": None}
    (finding,) = learning_rates(configs, parts, lr=1e-3, lr_scale={})
    assert finding.severity == "warning"
    assert "The image_encoder is pretrained and trained at a learning rate of 0.001, above 0.0003" in finding.message
    assert "lr_scale={image_encoder: 0.03}" in finding.advice
    (gentle,) = learning_rates(configs, parts, lr=1e-3, lr_scale={"image_encoder": 0.3})
    assert gentle.severity == "ok"
    adapted = {**configs, "adapt": {"image_encoder": "lora"}}  # begins at zero and takes higher rates
    assert learning_rates(adapted, parts, lr=1e-3, lr_scale={}) == []
    parts["image_encoder"].requires_grad_(False)
    assert learning_rates(configs, parts, lr=1e-3, lr_scale={}) == []


def test_the_longest_text_fits() -> None:
    encoder, decoder = nn.Linear(1, 1), nn.Linear(1, 1)
    encoder.max_length = 12  # type: ignore[assignment]
    parts = {"text_encoder": encoder, "decoder": decoder}
    assert lengths(parts, longest=40, max_length=12).severity == "ok"  # longer ones are cut
    assert lengths(parts, longest=12, max_length=64).severity == "ok"
    finding = lengths(parts, longest=40, max_length=20)
    assert finding.severity == "error"
    assert "The text_encoder holds 12 tokens, and texts have up to 20" in finding.message
    assert lengths({"text_encoder": None, "decoder": None}, longest=40, max_length=20).severity == "ok"


def test_memory_lists_its_parts_and_their_sum() -> None:
    costs = Costs(
        weights=2**20, trainable=2**20, in_blocks=0, largest_block=0, average=0, in_losses=0,
        activations=(2.0**20, 0.0), forward_flops=(0.0, 0.0), backward_flops=(0.0, 0.0), sample_bytes=0, embed_bytes=0,
        rows=1, captions=True, shared=False, loss_bytes=(0.0, 0.0, 0.0), loss_flops=(0.0, 0.0, 0.0),
    )  # fmt: skip
    finding = memory(costs, Setup(gpus=1, batch=1024), length=9)
    assert finding.severity == "info"
    assert finding.message.startswith("A step of 1,024 samples with texts of 9 tokens takes 1.00 GiB per device")
    assert "(weights 1.0 MiB, gradients 1.0 MiB, optimizer 2.0 MiB, activations 1.00 GiB)" in finding.message
    assert finding.value["total"] == sum(size for part, size in finding.value.items() if part != "total")
