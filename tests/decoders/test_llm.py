"""Laws of causal language models behind a prefix: they are transformers' own, and what is frozen stays so."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from velm.decoders.llm import LLMDecoder
from velm.decoders.projector import Projector, shuffle
from velm.errors import ConfigError
from velm.generation import GenerationConfig, generate
from velm.pretrained.weights import skip_pretrained
from velm.testing import check_decoder

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 48,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma3_text": {**GROUPED, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 48},
    "smollm3": GROUPED,
}


def build(name: str = "llama", **options) -> LLMDecoder:
    torch.manual_seed(0)
    given = {"model_name": name, "vocab_size": 32, "pad_id": 3, "memory_dim": 12, "config": CONFIGS[name]}
    return LLMDecoder(**{**given, **options}).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_it_keeps_the_contract(name):
    report = check_decoder(lambda: build(name).train(), pad_id=3, memory_dim=12)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_model_of_transformers(name):
    decoder = build(name)
    whole = transformers.AutoModelForCausalLM.from_config(decoder.model.config).eval()
    whole.base_model.load_state_dict(decoder.model.state_dict())
    whole.get_output_embeddings().load_state_dict(decoder.output_projection.state_dict())
    memory, tokens = torch.randn(2, 5, 12), torch.randint(4, 32, (2, 6))
    embeds = torch.cat([decoder.projector(memory)[0], whole.get_input_embeddings()(tokens)], dim=1)
    expected = whole(inputs_embeds=embeds).logits[:, 5:]
    torch.testing.assert_close(decoder.output_projection(decoder(tokens, memory)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_padding_of_the_memory_is_neither_read_nor_counted(name, attention):
    decoder = build(name, prefix_attention=attention)
    tokens, memory = torch.randint(4, 32, (1, 6)), torch.randn(1, 5, 12)
    padded = torch.cat([memory, torch.full((1, 3, 12), 9.0)], dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 3])
    torch.testing.assert_close(decoder(tokens, padded, mask), decoder(tokens, memory), atol=1e-5, rtol=0)
    state = decoder.start(padded, mask)
    for place in range(6):
        logits, state = decoder.step(tokens[:, place], state)
    expected = decoder.output_projection(decoder(tokens, memory)[:, -1])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_a_resampler_reads_no_padding():
    decoder = build(projector="resampler", prefix_tokens=3)
    tokens, memory = torch.randint(4, 32, (1, 6)), torch.randn(1, 5, 12)
    padded, mask = torch.cat([memory, torch.full((1, 3, 12), 9.0)], dim=1), torch.tensor([[True] * 5 + [False] * 3])
    torch.testing.assert_close(decoder(tokens, padded, mask), decoder(tokens, memory), atol=1e-5, rtol=0)
    assert decoder.start(padded, mask).prefix == 3


def test_a_bidirectional_prefix_sees_itself_and_no_text():
    decoder, tokens, memory = build(prefix_attention="bidirectional"), torch.tensor([[1, 7, 9]]), torch.randn(1, 5, 12)
    other = decoder(torch.tensor([[1, 7, 8]]), memory)
    torch.testing.assert_close(decoder(tokens, memory)[:, :2], other[:, :2])
    assert not torch.allclose(decoder(tokens, memory), build()(tokens, memory))


def test_captions_do_not_depend_on_the_batch():
    decoder, memory = build(), torch.randn(3, 4, 12)
    config = GenerationConfig(max_length=8, num_beams=2)
    special = {"bos_id": 1, "eos_id": 2, "pad_id": 3, "suppress": (3,)}
    together = generate(decoder, memory, config=config, **special)
    alone = [generate(decoder, memory[i : i + 1], config=config, **special) for i in range(3)]
    for i, each in enumerate(alone):
        assert torch.equal(each.tokens[0][each.tokens[0] != 3], together.tokens[i][together.tokens[i] != 3])


def test_a_frozen_model_learns_nothing_and_the_projector_does():
    decoder = build(trainable="projector").train()
    assert not decoder.model.training
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in decoder.parameters() if p.requires_grad], lr=0.1)
    decoder.output_projection(decoder(torch.randint(4, 32, (2, 5)), torch.randn(2, 4, 12))).square().mean().backward()
    optimizer.step()
    after = decoder.state_dict()
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"projector"}


def test_special_tokens_that_the_tokenizer_added_are_read_as_padding():
    decoder = build(config={**GROUPED, "vocab_size": 30})
    assert decoder.output_projection.out_features == 30
    tokens, memory = torch.tensor([[1, 5, 6, 31], [1, 5, 30, 31]]), torch.randn(2, 3, 12)
    hidden = decoder(tokens, memory)
    torch.testing.assert_close(hidden[0, :3], decoder(tokens[:1, :3], memory[:1])[0], atol=1e-6, rtol=0)


def test_tied_vectors_stay_tied():
    decoder = build(config={**GROUPED, "tie_word_embeddings": True})
    assert decoder.output_projection.weight is decoder.model.get_input_embeddings().weight


def test_a_checkpoint_needs_no_folder(tmp_path):
    source = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, vocab_size=32))
    source.save_pretrained(tmp_path / "llm")
    decoder = LLMDecoder(model_name=str(tmp_path / "llm"), vocab_size=32, memory_dim=12).eval()
    assert torch.equal(decoder.model.norm.weight, source.model.norm.weight)
    json.dumps(decoder.portable_config)
    with skip_pretrained():
        given = {"model_name": "gone", "vocab_size": 32, "memory_dim": 12}
        rebuilt = LLMDecoder(**{**given, **decoder.portable_config}).eval()
    rebuilt.load_state_dict(decoder.state_dict())
    tokens, memory = torch.randint(4, 32, (1, 4)), torch.randn(1, 3, 12)
    assert torch.equal(rebuilt(tokens, memory), decoder(tokens, memory))


def test_shuffle_is_that_of_idefics():
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    memory = torch.randn(2, 16, 3)
    expected = Idefics3Connector.pixel_shuffle(None, memory, 2)
    assert torch.equal(shuffle(memory, 2), expected)


@pytest.mark.parametrize("name", ["linear", "affine", "mlp", "resampler"])
def test_projectors(name):
    projector = Projector(name, 12, 24, shuffle=2, queries=3)
    assert projector(torch.randn(2, 16, 12))[0].shape == (2, 3 if name == "resampler" else 4, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projector": "cnn"}, "projector is one of linear, affine, mlp, resampler; got 'cnn'"),
        ({"shuffle": 0}, "shuffle, prefix_tokens and depth are at least 1"),
        ({"config": {**GROUPED, "vocab_size": 20}}, "tokenizer has 32 tokens, llm/llama knows 20: they do not belong"),
        (
            {"trainable": "lora"},
            "trainable is 'all' or 'projector'; got 'lora'. Adapters are model.adapt: {decoder: lora}",
        ),
        ({"prefix_attention": "left"}, "prefix_attention is 'causal' or 'bidirectional'"),
        ({"config": {**GROUPED, "logit_scale": 0.5}}, "logit_scale = 0.5"),
    ],
)
def test_wrong_options_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_model_that_is_no_language_model():
    with pytest.raises(ValueError, match="no causal language model of this type"):
        LLMDecoder(model_name="vit", vocab_size=32, memory_dim=12, config={})


def test_recurrent_layers_are_refused():
    with pytest.raises(ValueError, match="llm/mamba has recurrent layers"):
        LLMDecoder(model_name="mamba", vocab_size=32, memory_dim=12, config={"hidden_size": 16})


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="the memory has 6: they form no square grid"):
        build(shuffle=2)(torch.ones(1, 2, dtype=torch.long), torch.randn(1, 6, 12))
    with pytest.raises(ConfigError, match="the memory holds text too"):
        build(shuffle=2)(torch.ones(1, 2, dtype=torch.long), torch.randn(1, 4, 12), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"take 51 positions.*holds 48"):
        build()(torch.ones(1, 11, dtype=torch.long), torch.randn(1, 40, 12))


@pytest.mark.parametrize("projector", ["mlp", "resampler"])
def test_every_vector_of_the_prefix_has_the_norm_that_is_asked_for(projector):
    decoder = build("gemma3_text", projector=projector, prefix_norm=2.5, prefix_tokens=3)
    norms = decoder.projector(torch.randn(2, 4, 12))[0].norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 2.5))
    matched = build("gemma3_text", projector=projector, prefix_norm="match")
    words = matched.embed_tokens(torch.arange(32)[None], 0).norm(dim=-1).median()
    torch.testing.assert_close(matched.projector.scale.data, words.data)
    assert "projector.scale" not in build(projector=projector).state_dict()


@pytest.mark.parametrize("name", ["linear", "affine", "mlp"])
def test_a_map_whose_norm_is_given_keeps_the_size_of_what_it_reads(name):
    """With 0.02 a step of Adam turned the vectors, which are normalised, several times as far."""
    read = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for norm, expected in ((1.0, 1.0), (None, 0.02 * 256**0.5)):
        first = Projector(name, 64, 96, shuffle=2, norm=norm).map
        first = first[0] if name == "mlp" else first
        assert first(shuffle(read, 2)).std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("norm", [0, -1.0, "large", True])
def test_a_norm_that_cannot_be_is_refused(norm):
    with pytest.raises(ValueError, match="prefix_norm is null, 'match' or a number above 0"):
        build(prefix_norm=norm)
