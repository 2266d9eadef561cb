"""Laws of the norm: forward that of transformers bit for bit, gradients those of autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from velm._compat import FakeTensorMode
from velm.layers.rms_norm import RMSNorm, _is_equal, replace_rms_norms


def replaced(norm: nn.Module) -> nn.Module:
    parent = nn.Sequential(norm)
    replace_rms_norms(parent)
    return parent[0]


def pair(norm: type[nn.Module], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    theirs = norm(24, eps=1e-3).to(dtype)
    nn.init.normal_(theirs.weight)
    return replaced(theirs), theirs


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("norm", [LlamaRMSNorm, Qwen3RMSNorm])
def test_equals_the_norm_of_transformers(norm, dtypes):
    torch.manual_seed(0)
    of_x, of_weight = (getattr(torch, each) for each in dtypes)
    ours, theirs = pair(norm, of_weight)
    assert type(ours) is RMSNorm
    assert ours.weight is theirs.weight
    x = torch.randn(2, 5, 24, dtype=of_x)
    outputs, gradients = [], []
    for each in (ours, theirs):
        given = x.clone().requires_grad_()
        outputs.append(each(given))
        weights = torch.linspace(-1, 1, x.numel()).view_as(x).to(outputs[0].dtype)
        gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), [given, each.weight]))
    assert torch.equal(*outputs)
    tolerance = 1e-5 if of_x == torch.float32 else 0.05
    for own, other in zip(*gradients, strict=True):
        assert own.dtype == other.dtype
        torch.testing.assert_close(own, other, atol=tolerance, rtol=tolerance)


def test_gradients_are_those_of_differences():
    torch.manual_seed(0)
    weight, x = torch.randn(6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    norm = RMSNorm(nn.Parameter(weight), 0.1)
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, (x,)),
        (x.requires_grad_(), weight.clone().requires_grad_()),
    )


def test_a_frozen_weight_has_no_gradient():
    norm = RMSNorm(nn.Parameter(torch.ones(4), requires_grad=False), 1e-6)
    x = torch.randn(2, 4, requires_grad=True)
    norm(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None


class OddRMSNorm(nn.RMSNorm):
    def __init__(self):
        super().__init__(8, 1e-6)


@pytest.mark.parametrize("norm", [lambda: Gemma3RMSNorm(8), OddRMSNorm])
def test_another_norm_stays(norm):
    theirs = norm()
    assert replaced(theirs) is theirs


@pytest.mark.parametrize("place", [lambda: torch.device("meta"), lambda: FakeTensorMode(allow_non_fake_inputs=True)])
def test_norms_without_data_are_replaced(place):
    _is_equal.cache_clear()
    with place():
        assert type(replaced(LlamaRMSNorm(8))) is RMSNorm
