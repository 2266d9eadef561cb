"""Laws of prefixes that beams share: the same texts as without sharing and without a cache, and no copies."""

from __future__ import annotations

from copy import deepcopy
from itertools import product

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from tests.decoders.test_llm import CONFIGS, build
from velm.decoders import llm, views
from velm.decoders.cache import cache_option
from velm.generation import GenerationConfig, generate
from velm.prompt import Prompt

SPECIAL = {"bos_id": 1, "eos_id": 2, "pad_id": 3, "suppress": (1, 3)}
PROMPTS = Prompt(
    torch.tensor([[5, 3], [6, 7], [8, 9]]), torch.tensor([[True, False], [True, True], [True, True]]),
    torch.tensor([[4, 5, 6], [4, 3, 3], [4, 7, 3]]),
    torch.tensor([[True, True, True], [True, False, False], [True, True, False]]),
)  # fmt: skip


def own_prefixes(monkeypatch, *args, **options):
    """The same decoder, whose rows have a prefix each."""
    with monkeypatch.context() as patch:
        patch.setattr(llm, "show_views", lambda model: False)
        return build(*args, **options)


def read(decoder, case: str):
    """Memory and mask of three images: whole, partly padding, or within prompts of unequal length."""
    memory = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(5) < torch.tensor([[5], [3], [4]])
    if case == "prompts":
        return decoder.read_prompt(memory, None, PROMPTS)
    return memory, None if case == "whole" else mask


def write(decoder, memory, mask=None, **config):
    generator = torch.Generator().manual_seed(0)
    return generate(decoder, memory, mask, config=GenerationConfig(**config), generator=generator, **SPECIAL)


@pytest.mark.parametrize("case", ["whole", "padded", "prompts"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_cached_equals_uncached_whoever_shares(name, attention, case, monkeypatch):
    options = {"prefix_attention": attention, "template": "{text}" if case == "prompts" else None}
    decoder = build(name, **options)
    memory, mask = read(decoder, case)
    tokens = torch.randint(4, 32, (3, 7))
    expected = decoder.output_projection(decoder(tokens, memory, mask))
    other = own_prefixes(monkeypatch, name, **options)
    torch.testing.assert_close(other.output_projection(other(tokens, memory, mask)), expected, atol=1e-5, rtol=0)
    state, owners = decoder.start(memory, mask), torch.arange(3)
    assert decoder.takes_views
    for place, rows in enumerate(
        [[0, 1, 2], [2, 0, 0, 1], [0, 1, 3], [2, 0, 0], [1, 1, 0, 2, 2, 1], [0, 5, 4, 1], [2]]
    ):
        state, owners = state.select(torch.tensor(rows)), owners[rows]
        logits, state = decoder.step(tokens[owners, place], state)
        torch.testing.assert_close(logits, expected[owners, place], atol=1e-5, rtol=0)


def test_windows_are_those_of_transformers():
    decoder = build("gemma3_text")
    whole = transformers.AutoModelForCausalLM.from_config(deepcopy(decoder.model.config)).eval()
    whole.set_attn_implementation("eager")
    whole.base_model.load_state_dict(decoder.model.state_dict())
    whole.get_output_embeddings().load_state_dict(decoder.output_projection.state_dict())
    memory, tokens = torch.randn(2, 5, 12), torch.randint(4, 32, (2, 6))
    cache = transformers.DynamicCache(config=whole.config)
    with torch.no_grad():
        cached = {cache_option(whole): cache, "use_cache": True}
        whole(inputs_embeds=decoder.projector(memory)[0], **cached)
        state = decoder.start(memory)
        for place in range(6):
            logits, state = decoder.step(tokens[:, place], state)
            theirs = whole(input_ids=tokens[:, place : place + 1], **cached).logits[:, -1]
            torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=0)
    wider = build("gemma3_text", config={**CONFIGS["gemma3_text"], "sliding_window": 40})
    assert not torch.allclose(wider(tokens, memory), decoder(tokens, memory), atol=1e-4)


def test_padding_in_a_window_is_not_counted():
    decoder, tokens = build("gemma3_text"), torch.randint(4, 32, (1, 6))
    memory = torch.randn(1, 5, 12)
    holes = torch.cat([memory[:, :2], torch.full((1, 4, 12), 9.0), memory[:, 2:]], dim=1)
    mask = torch.tensor([[True] * 2 + [False] * 4 + [True] * 3])
    torch.testing.assert_close(decoder(tokens, holes, mask), decoder(tokens, memory), atol=1e-5, rtol=0)


def test_prompts_may_be_padded_on_either_side():
    decoder = build("llama", template="{text}")
    memory, tokens = torch.randn(3, 5, 12), torch.randint(4, 32, (3, 4))
    flipped = PROMPTS.map(lambda each: torch.stack([row.flip(0) for row in each]))
    left = Prompt(*(each.clone() for each in flipped.__dict__.values()))
    for ids, mask, original, kept in (
        (left.before, left.before_mask, PROMPTS.before, PROMPTS.before_mask),
        (left.after, left.after_mask, PROMPTS.after, PROMPTS.after_mask),
    ):
        for row in range(3):
            ids[row, mask[row]] = original[row, kept[row]]
    expected = decoder(tokens, *decoder.read_prompt(memory, None, PROMPTS))
    torch.testing.assert_close(decoder(tokens, *decoder.read_prompt(memory, None, left)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@torch.no_grad()
def test_beams_are_the_best_of_all_texts(name):
    decoder = build(name, vocab_size=6).double()
    torch.nn.init.normal_(decoder.output_projection.weight)
    memory = torch.randn(2, 4, 12, dtype=torch.float64)
    texts = [(*words, 2) for length in range(4) for words in product((0, 4, 5), repeat=length)]
    totals = []
    for text in texts:
        tokens = torch.tensor([[1, *text[:-1]]]).expand(2, -1)
        log_p = decoder.output_projection(decoder(tokens, memory)).log_softmax(dim=-1)
        totals.append(log_p[:, torch.arange(len(text)), torch.tensor(text)].sum(dim=1))
    best = torch.stack(totals, dim=1).topk(5)
    found = write(decoder, memory, num_beams=100, num_return=5, max_length=4, length_penalty=0.0)
    torch.testing.assert_close(found.scores.double(), best.values, atol=1e-5, rtol=0)
    for row, places in enumerate(best.indices.tolist()):
        assert [tuple(t for t in text if t != 3) for text in found.tokens[row].tolist()] == [texts[i] for i in places]


HOW = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return": 2},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return": 4},
    "samples": {"temperature": 1.0, "num_return": 3},
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_every_search_writes_what_it_writes_without_sharing(how, monkeypatch):
    options = {"template": "{text}", "vocab_size": 12}
    decoders = build("qwen2", **options), own_prefixes(monkeypatch, "qwen2", **options)
    for decoder in decoders:
        torch.nn.init.normal_(decoder.output_projection.weight, generator=torch.Generator().manual_seed(2), std=3.0)
    shared, own = (write(each, *read(each, "prompts"), max_length=9, **HOW[how]) for each in decoders)
    assert torch.equal(shared.tokens, own.tokens)
    torch.testing.assert_close(shared.scores, own.scores)
    ends = (shared.tokens == 2).any(dim=-1)
    assert how == "samples" or ends.any()
    if how != "samples":
        memory, mask = read(decoders[0], "prompts")
        for row in range(3):
            alone = write(decoders[0], memory[row : row + 1], mask[row : row + 1], max_length=9, **HOW[how]).tokens[0]
            assert torch.equal(alone, shared.tokens[row, :, : alone.shape[1]])


@torch.no_grad()
def test_a_prefix_is_held_once_and_states_are_values():
    decoder, memory = build(), torch.randn(2, 5, 12)
    start = decoder.start(memory)
    beams = start.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    for layer, keys in zip(start.cache.layers, beams.shared.keys, strict=True):
        assert keys.data_ptr() == layer.keys.data_ptr()
    first, state = decoder.step(torch.tensor([4, 5, 6, 7, 8, 9]), beams)
    decoder.step(torch.tensor([9, 9, 9, 9, 9, 9]), state)
    decoder.step(torch.tensor([8, 8]), state.select(torch.tensor([5, 0])))
    assert torch.equal(decoder.step(torch.tensor([4, 5, 6, 7, 8, 9]), beams)[0], first)
    assert state.cache.layers[0].keys.shape[2] == 1
    dropped = state.select(torch.tensor([4, 3, 5]))
    assert len(dropped.shared.keys[0]) == 1
    assert len(state.shared.keys[0]) == 2


def test_a_model_that_drops_the_view_has_prefixes_of_its_own(monkeypatch):
    monkeypatch.setitem(CONFIGS, "nemotron", CONFIGS["llama"])
    decoder = build("nemotron")  # its blocks do not hand options through to the attention
    tokens, memory = torch.randint(4, 32, (2, 3)), torch.randn(2, 5, 12)
    state = decoder.start(memory)
    assert not decoder.takes_views
    for place in range(3):
        logits, state = decoder.step(tokens[:, place], state)
    expected = decoder.output_projection(decoder(tokens, memory)[:, -1])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("inference", [False, True])
def test_rows_that_go_on_from_one_state_do_not_see_each_other(inference):
    decoder, memory = build("gemma3_text"), torch.randn(2, 5, 12)
    tokens = torch.randint(4, 32, (2, 3, 40))  # two continuations of each memory, longer than the room for them
    with torch.inference_mode(inference):
        start = decoder.start(memory)
    with torch.no_grad():
        states = [start, start, start]
        for place in range(40):
            for number in range(3):
                logits, states[number] = decoder.step(tokens[:, number, place], states[number])
                if place % 13 == 12:
                    expected = decoder.output_projection(decoder(tokens[:, number, : place + 1], memory)[:, -1])
                    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    _, state = decoder.step(tokens[:, 0, 0], decoder.start(memory.requires_grad_()))
    decoder.step(tokens[:, 0, 1], state)[0].sum().backward()  # with gradients
    assert memory.grad.abs().sum() > 0


@pytest.mark.parametrize("case", ["whole", "padded"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "gpt2"])
def test_matrix_products_attend_as_the_fused_kernel(name, case, monkeypatch):
    decoder, tokens = build(name), torch.randint(4, 32, (3, 7))
    memory, mask = read(decoder, case)
    expected = decoder(tokens, memory, mask)
    monkeypatch.setattr(views, "matmul_is_faster", lambda query, keys: True)
    torch.testing.assert_close(decoder(tokens, memory, mask), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_in_bfloat16_on_a_cpu_attends_by_matrix_products(name):
    """Also where norms of queries and rotary positions return float32 under autocast."""
    decoder, tokens = build(name), torch.randint(4, 32, (3, 7))
    memory, _ = read(decoder, "whole")
    with Operators() as operators, torch.autocast("cpu", torch.bfloat16):
        decoder(tokens, memory).sum().backward()
    assert torch.ops.aten.bmm.default in operators.seen
    assert not [each for each in operators.seen if "scaled_dot_product" in str(each)]


class Operators(TorchDispatchMode):
    """The operators of ATen that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operator, types, args=(), options=None):
        self.seen.add(operator)
        return operator(*args, **(options or {}))
