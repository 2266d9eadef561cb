"""Laws of the last block: hidden states and gradients are those of the whole block, for less work."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.decoders.test_llm import CONFIGS, build
from tests.decoders.test_packed import prompts
from velm.decoders.llm import LLMDecoder
from velm.training.memory.recompute import checkpoint_blocks

OTHERS = {
    "phi": {**CONFIGS["llama"], "num_key_value_heads": 2, "partial_rotary_factor": 0.5},  # attention beside the MLP
    "olmo2": CONFIGS["llama"],
    "mistral": {**CONFIGS["llama"], "sliding_window": 3},
    "gpt_neox": {**CONFIGS["gpt2"], "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
}
ROWS = torch.tensor([0, 0, 1, 2, 1, 2, 0])


def last_block(decoder: LLMDecoder) -> nn.Module:
    found = [each for each in decoder.model.modules() if isinstance(each, nn.ModuleList)]
    return next(each for each in found if len(each) == decoder.model.config.num_hidden_layers)[-1]


def whole(decoder: LLMDecoder) -> LLMDecoder:
    decoder = copy.deepcopy(decoder)
    del last_block(decoder).forward
    return decoder


def hidden_states(decoder: LLMDecoder, case: str) -> torch.Tensor:
    torch.manual_seed(1)
    memory, tokens = torch.randn(3, 5, 12), torch.randint(4, 32, (7, 6))
    mask = torch.arange(5) < torch.tensor([[5], [3], [4]]) if case == "padded" else None
    if case == "one text each":
        return decoder(tokens[:3], memory, mask)
    return decoder.decode_shared(tokens, memory, mask, ROWS, 3, prompts(True) if decoder.template else None).hidden


@pytest.mark.parametrize("case", ["one text each", "shared", "padded", "prompts"])
@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_equals_the_whole_block(name, case):
    config = {**CONFIGS, **OTHERS}[name]
    decoder = build(model_name=name, config=config, template="{image}{text}" if case == "prompts" else None)
    both = decoder, whole(decoder)
    ours, theirs = (hidden_states(each, case) for each in both)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    weights = torch.randn_like(ours)
    gradients = [
        torch.autograd.grad((hidden * weights).sum(), list(each.parameters()), allow_unused=True)
        for hidden, each in zip((ours, theirs), both, strict=True)
    ]
    for own, other in zip(*gradients, strict=True):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            torch.testing.assert_close(own, other, atol=2e-5 * max(1.0, other.abs().max().item()), rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_less(name):
    decoder = build(name)
    counts = []
    for each in (decoder, whole(decoder)):
        with FlopCounterMode(display=False) as counter:
            hidden_states(each, "one text each").sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.9 * counts[1]


def test_a_copy_has_a_block_of_its_own():
    decoder = build()
    copied = copy.deepcopy(decoder)
    for parameter in last_block(copied).parameters():
        nn.init.zeros_(parameter)
    ours, theirs = hidden_states(decoder, "shared"), hidden_states(copied, "shared")
    assert not torch.allclose(ours, theirs)
    torch.testing.assert_close(theirs, hidden_states(whole(copied), "shared"), atol=1e-6, rtol=0)


def test_recomputed_blocks_have_the_same_gradients():
    decoder = build().train()
    gradients = []
    for each in (decoder, copy.deepcopy(decoder)):
        if gradients:
            checkpoint_blocks({"decoder": each})
        hidden_states(each, "shared").square().sum().backward()
        gradients.append([parameter.grad for parameter in each.model.parameters() if parameter.grad is not None])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
