"""Where a language model looks: hand-made attention is found on any grid, in any prompt; recording changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.decoders.test_llm import CONFIGS, build
from velm.decoders.llm import LLMDecoder
from velm.decoders.recorded_view import RecordedView
from velm.decoders.views import Sequence
from velm.prompt import Prompt

WIDTH, BEAMED = 16, 6  # positions of a 4 x 4 grid; the one that is looked at


def pointer(**options) -> LLMDecoder:
    """A GPT-2 of one layer, all of whose positions look at those whose vector is large in dimension 0."""
    config = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 64}
    decoder = build("gpt2", config=config, memory_dim=WIDTH, projector="linear", **options)
    attention, half = decoder.model.h[0].attn.c_attn, WIDTH // 2
    with torch.no_grad():
        decoder.model.wpe.weight.zero_()
        attention.weight.zero_()
        attention.bias.zero_()
        for head in (0, half):
            attention.bias[head] = 30.0  # of queries
            attention.weight[0, WIDTH + head] = 10.0  # of keys
        attention.weight[:, 2 * WIDTH :] = torch.eye(WIDTH)
        decoder.projector.map.weight.zero_()
        for cell in range(decoder.projector.side**2):  # a square of joined positions has the sum of their vectors
            decoder.projector.map.weight[:, cell * WIDTH : (cell + 1) * WIDTH] = torch.eye(WIDTH)
    return decoder


def marked(place: int = BEAMED) -> torch.Tensor:
    """A memory of 16 positions, one of which is large in dimension 0, the others in dimension 1."""
    memory = torch.eye(WIDTH)[1].repeat(1, 16, 1)
    memory[0, place] = 5 * torch.eye(WIDTH)[0]
    return memory


def prompt_of(before: int, after: int) -> Prompt:
    """A prompt of random tokens, the last of which are padding."""
    torch.manual_seed(4)
    parts = [torch.randint(4, 32, (1, length)) for length in (before, after)]
    masks = [torch.arange(part.shape[1])[None] < max(1, part.shape[1] - 1) for part in parts]
    return Prompt(parts[0], masks[0], parts[1], masks[1])


TOKENS = torch.tensor([[1, 7, 9, 8]])


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("template", [None, "see {image} : {text}"])
def test_it_finds_the_position_that_is_looked_at(attention, template):
    decoder = pointer(prefix_attention=attention, template=template)
    prompt = None if template is None else prompt_of(3, 4)
    for place in (0, BEAMED, 15):
        weights = decoder.attend(TOKENS, marked(place), None, prompt)
        assert weights.shape == (1, 4, 16)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4))
        assert torch.all(weights[0, :, place] > 0.99)


def test_a_square_of_joined_positions_shares_its_weight():
    weights = pointer(shuffle=2).attend(TOKENS, marked())
    assert weights.shape == (1, 4, 16)
    square = weights[0].reshape(4, 4, 4)[:, :2, 2:]  # position 6 of a row of four is in row 1 and column 2
    torch.testing.assert_close(square, torch.full_like(square, 0.25), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_has_no_weight_and_the_batch_does_not_matter(name):
    decoder, memory = build(name), torch.randn(2, 5, 12)
    tokens, mask = torch.randint(4, 32, (2, 6)), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    weights = decoder.attend(tokens, memory, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6))
    assert torch.all(weights[1, :, 3:] == 0)
    alone = decoder.attend(tokens[1:], memory[1:, :3])
    torch.testing.assert_close(weights[1:, :, :3], alone, atol=1e-5, rtol=0)


def record(total: int = 3, keys: slice = slice(None)) -> RecordedView:
    return RecordedView(Sequence(total, 0, torch.device("cpu")), keys)


def layer_of(query: torch.Tensor, key: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1])


def attend(view: RecordedView, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return view.attend(layer_of(query, key), query, key, value, 1.0, None, 0.0)


def test_recording_changes_nothing_and_weights_are_those_of_the_output():
    query, key, value = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    usual, view = Sequence(3, 0, torch.device("cpu")), record()
    given = usual.attend(layer_of(query, key), query, key, value, 1.0, None, 0.0)
    assert torch.equal(attend(view, query, key, value), given)
    identity = torch.eye(3).expand(1, 1, 3, 3)  # the output is the weights, and every value has norm 1
    view = record()
    torch.testing.assert_close(attend(view, query[:1, :1], key[:1, :1], identity)[:, :, 0], view.effect())


def test_a_value_of_zero_has_no_effect_however_much_it_is_attended_to():
    view, key = record(), torch.tensor([[[[9.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]])
    attend(view, torch.ones(1, 1, 3, 2), key, torch.tensor([[[[0.0, 0.0], [3.0, 4.0], [0.6, 0.8]]]]))
    seen = view.effect()[0, 2]
    assert seen[0] == 0
    assert seen[1] == pytest.approx(5 * float(seen[2]))


def test_layers_are_added():
    view, one = record(total=1), torch.ones(1, 1, 1, 1)
    for value in (1.0, 2.0):
        attend(view, one, one, value * one)
    assert float(view.effect()) == 3.0


def test_a_resampler_passes_the_weights_on_by_its_own():
    decoder = build(projector="resampler", prefix_tokens=3)
    memory, mask = torch.randn(1, 6, 12), torch.tensor([[True] * 4 + [False] * 2])
    one = torch.eye(3)[None]  # each vector of the prefix alone
    spread = decoder.projector.spread(one, memory, mask)
    torch.testing.assert_close(spread.sum(-1), torch.ones(1, 3))
    assert torch.all(spread[..., 4:] == 0)
    weights = decoder.attend(TOKENS, memory, mask)
    assert weights.shape == (1, 4, 6)
    assert torch.all(weights >= spread.amin(dim=1) - 1e-6)
    assert torch.all(weights <= spread.amax(dim=1) + 1e-6)


def test_a_prompt_is_needed_where_there_is_a_template():
    assert build(template="{image} {text}").attend(TOKENS, torch.randn(1, 4, 12)) is None
    assert build().attend(TOKENS, torch.randn(1, 4, 12), None, prompt_of(2, 2)) is None
