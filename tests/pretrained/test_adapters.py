"""LoRA and DoRA: the merged part is the adapted one, only adapters learn, and what cannot be adapted says why."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from velm import registry
from velm.errors import CheckpointError, MissingPackageError
from velm.pretrained.adapters import LoRA, adapted_layers, merge_adapters, remove_adapters

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGES = {**SIZES, "image_size": 32, "patch_size": 8}
PARTS: dict[str, tuple[registry.Registry, dict[str, Any]]] = {
    "vit": (registry.image_encoders, {"name": "vit", "dim": 16, "depth": 2, "heads": 2, "patch_size": 8}),
    "hf_clip_vision": (registry.image_encoders, {"name": "hf/clip_vision_model", "config": IMAGES, "dim": 8}),
    "hf_siglip_vision": (registry.image_encoders, {"name": "hf/siglip_vision_model", "config": IMAGES}),
    "timm": (registry.image_encoders, {"name": "timm/test_vit"}),
    "transformer": (registry.text_encoders, {"name": "transformer", "dim": 16, "depth": 2, "heads": 2}),
    "hf_bert": (registry.text_encoders, {"name": "hf/bert", "config": SIZES}),
    "hf_siglip_text": (registry.text_encoders, {"name": "hf/siglip_text_model", "config": SIZES}),
    "decoder": (registry.decoders, {"name": "transformer", "dim": 16, "depth": 2, "heads": 2}),
    "hf_gpt2": (registry.decoders, {"name": "hf/gpt2", "config": {"n_embd": 16, "n_layer": 2, "n_head": 2}}),
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 16},
    "dora": {"r": 4, "use_dora": True},
    "all_linear": {"target_modules": "all-linear", "use_rslora": True, "init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
}


def build(name: str) -> nn.Module:
    kind, config = PARTS[name]
    if name == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    part: nn.Module = kind.build(config, vocab_size=20, pad_id=0, memory_dim=16)
    return part.eval()


def output(part: nn.Module, name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 20, (2, 6), generator=generator)
    if PARTS[name][0] is registry.image_encoders:
        return part(torch.randn(2, 3, 32, 32, generator=generator)).pooled
    if PARTS[name][0] is registry.text_encoders:
        return part(tokens, torch.tensor([[True] * 6, [True] * 4 + [False] * 2])).pooled
    return part(tokens, torch.randn(2, 5, 16, generator=generator))


def learn(part: nn.Module) -> None:
    """Random values for adapters, as after training."""
    torch.manual_seed(2)
    for _, layer in adapted_layers(part):
        for weight in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
            nn.init.normal_(weight, std=0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PARTS)
def test_adapters_begin_as_the_base_learn_and_merge(name: str, method: str) -> None:
    part = build(name)
    plain, names = output(part, name), set(part.state_dict())
    adapted = LoRA(**METHODS[method]).inject(part)
    torch.testing.assert_close(output(part, name), plain, atol=1e-5, rtol=0)
    learn(part)
    result = output(part, name)
    assert (result - plain).abs().max() > 1e-3
    result.square().sum().backward()
    grads = {layer: p.grad for layer, p in part.named_parameters() if p.requires_grad and "lora_" in layer}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())
    assert all(p.grad is None for layer, p in part.named_parameters() if "base_layer" in layer)
    assert [layer for layer, _ in adapted_layers(part)] == adapted
    merge_adapters(part)
    assert set(part.state_dict()) == names
    torch.testing.assert_close(output(part, name), result, atol=1e-5, rtol=0)


def test_convolutions_merge_too() -> None:
    part = registry.image_encoders.build({"name": "cnn", "dim": 16, "norm": "batch"}).eval()
    images = torch.randn(2, 3, 32, 32)
    LoRA(target_modules=["conv1"], use_dora=True).inject(part)
    learn(part)
    result = part(images).pooled
    torch.testing.assert_close(merge_adapters(part)(images).pooled, result, atol=1e-5, rtol=0)


def test_what_is_new_beside_a_library_s_model_is_trained_as_before() -> None:
    def trained(name: str, **options: Any) -> set[str]:
        part = build(name)
        LoRA(**options).inject(part)
        return {n for n, p in part.named_parameters() if p.requires_grad and "lora_" not in n}

    assert trained("hf_clip_vision") == {"projection.weight", "projection.bias"}
    assert trained("vit") == set()
    assert trained("vit", modules_to_save=["norm"]) == {"norm.weight", "norm.bias"}
    cross = trained("hf_gpt2")
    assert cross
    assert all("cross" in name for name in cross)


def test_removed_adapters_leave_the_base() -> None:
    part = build("vit")
    before = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    LoRA().inject(part)
    learn(part)
    after = remove_adapters(part).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_half_precision_is_merged_in_float32() -> None:
    """1 + 2^-8 + 2^-17 is rounded to bfloat16's next number, 1 + 2^-7; the update in bfloat16 would be 2^-8, a tie."""
    layer = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.constant_(layer[0].weight, 1.0)
    LoRA(r=2, target_modules=["0"], lora_alpha=2).inject(layer)
    layer.bfloat16()
    nn.init.constant_(layer[0].lora_A["default"].weight, 1.0)
    layer[0].lora_B["default"].weight.data = torch.tensor([[2**-8, 2**-17]] * 4).bfloat16()
    merge_adapters(layer)
    assert layer[0].weight.dtype == torch.bfloat16
    assert bool((layer[0].weight == 1 + 2**-7).all())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit", {"target_modules": ["qery"]}, "'qery', which matches no layer. Did you mean 'query'\\? Layers that"),
        ("vit", {"target_modules": ["query", "patches"]}, "patches cannot be adapted: the weights of patches are read"),
        ("vit", {"target_modules": ["mlp"]}, "mlp cannot be adapted: it is a MLP, and peft adapts linear"),
        ("vit", {"exclude_modules": ".*"}, "the default target_modules match no layer of it beside exclude_modules"),
        ("vit", {"rank_pattern": {"output": 2}}, "rank_pattern names 'output', which matches no layer"),
        ("vit", {"modules_to_save": ["nrm"]}, "modules_to_save names 'nrm', which it has not. It has: patches"),
        ("decoder", {"target_modules": ["embedding"]}, "embedding cannot be adapted: it is an embedding or tied"),
        ("decoder", {"target_modules": ["output_projection"]}, "output_projection cannot be adapted: .* tied to one"),
        ("hf_siglip_vision", {"target_modules": ["out_proj"]}, "cannot be adapted: torch's fused attention reads"),
        ("hf_clip_vision", {"target_modules": ["projection"]}, "projection cannot be adapted: its weights are new"),
    ],
)
def test_what_cannot_be_adapted_says_why(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**options).inject(build(name))


def test_batch_norm_and_groups_are_refused() -> None:
    encoder = registry.image_encoders.build({"name": "torchvision/mobilenet_v2", "features": "features.2"})
    with pytest.raises(ValueError, match=r"conv.3 cannot be adapted: it is a BatchNorm2d"):
        LoRA(target_modules=["conv.3"]).inject(encoder)
    with pytest.raises(ValueError, match=r"conv.1.0 cannot be adapted: peft merges ordinary convolutions only"):
        LoRA(target_modules=["conv.1.0"]).inject(encoder)


def test_dora_needs_directions() -> None:
    part = build("vit")
    nn.init.zeros_(part.blocks[1].attention.query.weight[3:5])  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match=r"DoRA cannot adapt blocks.1.attention.query: 2 of its 16 rows are zero"):
        LoRA(use_dora=True).inject(part)


def test_ranges() -> None:
    with pytest.raises(ValueError, match="r is the rank of the update, at least 1; got 0"):
        LoRA(r=0)
    with pytest.raises(ValueError, match="lora_dropout is a probability below 1"):
        LoRA(lora_dropout=1.0)


def test_nan_is_not_merged() -> None:
    part = build("vit")
    LoRA().inject(part)
    next(adapted_layers(part))[1].lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"blocks.0.attention.query cannot be merged: its values are NaN"):
        merge_adapters(part)


def test_a_missing_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'velm\[lora\]'"):
        LoRA().inject(build("vit"))
