from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from velm.layers import depthwise
from velm.layers.depthwise import DepthwiseConv2d, use_fast_gradients
from velm.registry import image_encoders

CASES = list(itertools.product([3, 5, 7], [(1, 1), (2, 2), (2, 1)], [(0, 0), (1, 1), (2, 3)]))


def conv(side: int, stride: tuple[int, int], padding: tuple[int, int], bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(6, 6, side, stride=stride, padding=padding, groups=6, bias=bias)


@pytest.mark.parametrize(("side", "stride", "padding"), CASES)
def test_gradients_are_those_of_torch(side: int, stride: tuple[int, int], padding: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = conv(side, stride, padding).double()
    x = torch.randn(2, 6, 11, 12, dtype=torch.float64, requires_grad=True)
    output = layer(x)
    grad = torch.randn_like(output)
    output.backward(grad)
    weight = layer.weight.detach()
    ours = depthwise._weight_gradient(grad, x.detach(), weight, stride, padding)
    torch.testing.assert_close(ours, layer.weight.grad)
    ours = depthwise._input_gradient(grad, x.detach(), weight, stride, padding)
    torch.testing.assert_close(ours, x.grad, atol=1e-5, rtol=1e-5)  # computed in float32 where the stride is above 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("side", "stride"), [(3, (2, 2)), (5, (1, 1)), (5, (2, 2)), (7, (1, 1))])
def test_a_step_in_bfloat16_is_as_near_to_float32_as_that_of_torch(
    side: int, stride: tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    plain = conv(side, stride, (side // 2, side // 2), bias)
    fast = copy.deepcopy(plain)
    use_fast_gradients(fast)
    assert type(fast) is DepthwiseConv2d
    images = torch.randn(4, 6, 16, 16)

    def gradients(layer: nn.Conv2d, bfloat16: bool) -> list[torch.Tensor]:
        layer.zero_grad()
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = layer(x)
            assert output.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
        output.float().square().sum().backward()
        assert x.grad is not None
        return [x.grad, *(parameter.grad for parameter in layer.parameters() if parameter.grad is not None)]

    exact = gradients(plain, False)
    theirs, ours = gradients(plain, True), gradients(fast, True)
    assert len(ours) == len(exact) == 2 + bias
    for reference, torchs, own in zip(exact, theirs, ours, strict=True):
        bound = 2 * (torchs - reference).norm() + 1e-3 * reference.norm()
        assert (own - reference).norm() <= bound
    for reference, own in zip(exact, gradients(fast, False), strict=True):
        assert torch.equal(own, reference)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 5, groups=3),
        nn.Conv2d(6, 12, 5, groups=6),
        nn.Conv2d(6, 6, 4, groups=6, stride=2),
        nn.Conv2d(6, 6, 5, groups=6, dilation=2),
        nn.Conv2d(6, 6, 5, groups=6, padding="same"),
        nn.Conv2d(6, 6, 5, groups=6, padding=2, padding_mode="reflect"),
        nn.Conv2d(1, 1, 5),
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(layer: nn.Conv2d) -> None:
    use_fast_gradients(layer)
    assert type(layer) is nn.Conv2d


def test_without_gradients_and_when_compiled_it_is_a_plain_convolution() -> None:
    layer = conv(5, (1, 1), (2, 2))
    use_fast_gradients(layer)
    x = torch.randn(1, 6, 8, 8, dtype=torch.bfloat16)
    layer.bfloat16()
    assert type(layer(x).grad_fn).__name__ == "_DepthwiseBackward"
    with torch.no_grad():
        assert layer(x).grad_fn is None
    with torch.autograd.profiler.profile() as profile:
        layer.requires_grad_(False)(x)
        layer.requires_grad_(True)
    assert "_Depthwise" not in {event.name for event in profile.function_events}
    graph = torch.export.export(layer, (x,)).graph
    assert any("conv2d" in str(node.target) for node in graph.nodes)


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v2", "timm/efficientnet_lite0"])
def test_the_towers_have_them_and_keep_their_names_of_weights(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    encoder = image_encoders.build({"name": name})
    kinds = [type(module) for module in encoder.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert DepthwiseConv2d in kinds
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    assert list(plain.state_dict()) == list(encoder.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        ours = encoder(images).features
        torch.manual_seed(0)
        assert torch.equal(ours, plain(images).features)
