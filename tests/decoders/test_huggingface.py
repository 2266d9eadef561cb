"""Laws of the transformers bridge for decoders: tiny models with random weights."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from velm.decoders.huggingface import HFDecoder
from velm.errors import ConfigError
from velm.pretrained.weights import skip_pretrained
from velm.testing import check_decoder

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {**SIZES, "max_position_embeddings": 24}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
BART = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
MODELS = {"gpt2": GPT2, "bert": BERT, "roberta": BERT, "bert-generation": BERT, "bart": BART}
GIVEN = {"vocab_size": 32, "pad_id": 3, "memory_dim": 12}


@pytest.mark.parametrize(("name", "memory_dim"), [*((name, 12) for name in MODELS), ("gpt2", 16)])
def test_decoders_keep_the_contract(name, memory_dim):
    given = {**GIVEN, "memory_dim": memory_dim}
    report = check_decoder(
        lambda: HFDecoder(model_name=name, config=MODELS[name], **given), pad_id=3, memory_dim=memory_dim
    )
    assert report.ok, str(report)


def test_blips_decoder_is_transformers():
    config = {**BERT, "vocab_size": 34, "encoder_hidden_size": 12, "sep_token_id": 2}
    options = {"model_name": "blip_text_model", "config": config, "start_id": 33}
    decoder = HFDecoder(**options, **GIVEN).eval()
    assert isinstance(decoder.memory_projection, torch.nn.Identity)
    model = transformers.BlipTextLMHeadModel(decoder.model.config).eval()
    state = {name: tensor for name, tensor in decoder.model.state_dict().items() if "output" not in name.split(".")[0]}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    tokens, memory = torch.tensor([[1, 7, 9], [1, 8, 4]]), torch.randn(2, 5, 12)
    begun = tokens.clone()
    begun[:, 0] = 33
    expected = model(begun, encoder_hidden_states=memory).logits
    torch.testing.assert_close(decoder.output_projection(decoder(tokens, memory)), expected, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"reads all of its memory.* leave text out of model.memory"):
        decoder(tokens, memory, torch.ones(2, 5, dtype=torch.bool))


def test_a_text_begins_with_the_models_own_token():
    """Ids that the tokenizer added are read as it, whatever they are; no memory of the caller is changed."""
    config = {**GPT2, "vocab_size": 30}
    decoder = HFDecoder(model_name="gpt2", config=config, start_id=29, **GIVEN).eval()
    memory, tokens = torch.randn(2, 3, 12), torch.tensor([[1, 5, 30], [2, 5, 31]])
    before = tokens.clone()
    hidden = decoder(tokens, memory[:1].expand(2, -1, -1))
    assert torch.equal(tokens, before)
    assert torch.equal(hidden[0], hidden[1])
    logits, _ = decoder.step(tokens[:, 0], decoder.start(memory[:1].expand(2, -1, -1)))
    torch.testing.assert_close(logits, decoder.output_projection(hidden[:, 0]), atol=1e-5, rtol=0)
    assert decoder.output_projection.out_features == 30


def test_hidden_states_times_projection_are_the_models_logits():
    decoder = HFDecoder(model_name="bert", config=BERT, **GIVEN).eval()
    model = transformers.BertLMHeadModel(decoder.model.config).eval()
    state = {name: tensor for name, tensor in decoder.model.state_dict().items() if not name.startswith("output")}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    model.tie_weights()
    tokens, memory = torch.randint(4, 32, (2, 5)), torch.randn(2, 3, 12)
    expected = model(tokens, encoder_hidden_states=decoder.memory_projection(memory)).logits
    assert torch.allclose(decoder.output_projection(decoder(tokens, memory)), expected, atol=1e-5)


def test_words_are_read_and_written_with_the_same_weights():
    decoder = HFDecoder(model_name="gpt2", config=GPT2, **GIVEN)
    assert decoder.output_projection.weight is decoder.model.transformer.wte.weight


def test_a_state_is_never_changed_by_stepping_on():
    decoder = HFDecoder(model_name="gpt2", config=GPT2, **GIVEN).eval()
    _, state = decoder.step(torch.tensor([4, 5]), decoder.start(torch.randn(2, 3, 12)))
    first, _ = decoder.step(torch.tensor([6, 7]), state)
    decoder.step(torch.tensor([8, 9]), state.select(torch.tensor([1, 0])))
    again, _ = decoder.step(torch.tensor([6, 7]), state)
    assert torch.equal(first, again)


def test_beams_within_their_text_do_not_copy_the_memory():
    decoder = HFDecoder(model_name="gpt2", config=GPT2, **GIVEN).eval()
    _, state = decoder.step(torch.tensor([4, 5]), decoder.start(torch.randn(2, 3, 12)))
    state = state.select(torch.tensor([0, 0, 1, 1]))
    moved = state.select(torch.tensor([1, 1, 3, 2]))
    of_memory = [s.cache.cross_attention_cache.layers[0].keys.data_ptr() for s in (state, moved)]
    assert of_memory[0] == of_memory[1]
    assert moved.memory is state.memory
    across = state.select(torch.tensor([2, 3, 0, 1]))
    assert torch.equal(across.memory[0], state.memory[2])


def test_pretrained_language_model_gets_new_cross_attention_and_the_tokenizers_vocabulary(tmp_path):
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, vocab_size=32))
    model.save_pretrained(tmp_path)
    decoder = HFDecoder(model_name=str(tmp_path), vocab_size=35, pad_id=34, memory_dim=12)
    assert decoder.output_projection.out_features == 35
    assert torch.equal(decoder.output_projection.weight[:32], model.lm_head.weight)
    assert decoder.output_projection.weight is decoder.model.transformer.wte.weight
    smaller = HFDecoder(model_name=str(tmp_path), vocab_size=30, pad_id=0, memory_dim=12)
    assert smaller.output_projection.out_features == 30


def test_rebuilt_without_the_folder(tmp_path):
    folder = tmp_path / "gpt"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, vocab_size=32)).save_pretrained(folder)
    spec = {"model_name": str(folder), "vocab_size": 35, "pad_id": 34, "memory_dim": 12}
    decoder = HFDecoder(**spec).eval()
    folder.rename(tmp_path / "gone")
    assert str(tmp_path) not in json.dumps(decoder.portable_config)
    with skip_pretrained():
        rebuilt = HFDecoder(**{**spec, **decoder.portable_config}).eval()
    rebuilt.load_state_dict(decoder.state_dict())
    tokens, memory = torch.randint(0, 35, (1, 4)), torch.randn(1, 3, 12)
    assert torch.equal(decoder(tokens, memory), rebuilt(tokens, memory))


def test_only_cross_attention_learns():
    decoder = HFDecoder(model_name="gpt2", config=GPT2, **GIVEN, trainable="cross").train()
    tokens, memory = torch.randint(0, 32, (2, 4)), torch.randn(2, 3, 12)
    decoder.output_projection(decoder(tokens, memory)).sum().backward()
    learnt = {name for name, p in decoder.named_parameters() if p.grad is not None}
    assert "memory_projection.weight" in learnt
    assert all("cross" in name for name in learnt if name.startswith("model."))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": "llama", "config": {}}, "no language model with cross-attention .* gpt2, bert"),
        ({"model_name": "vit", "config": {}}, "no language model with cross-attention"),
        ({"model_name": "gpt2", "config": {**GPT2, "vocab_size": 40}}, "vocab_size 40, the tokenizer 32"),
        ({"model_name": "gpt2", "config": GPT2, "trainable": "some"}, "'all' or 'cross'; got 'some'"),
        ({"model_name": "gtp2", "config": GPT2}, "Did you mean 'gpt2'"),
        ({"model_name": "gpt2", "config": {**GPT2, "vocab_size": 30}, "start_id": 30}, "start_id 30 is no token of"),
        (
            {"model_name": "gpt2", "config": {**GPT2, "vocab_size": 20}, "start_id": 3},
            "32 tokens, hf/gpt2 knows 20",
        ),
    ],
)
def test_errors_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        HFDecoder(**GIVEN, **options)


def test_too_long_a_text():
    decoder = HFDecoder(model_name="roberta", config=BERT, **GIVEN)
    assert decoder.max_length == 20  # positions begin behind the pad id, 3
    with pytest.raises(ValueError, match="21 tokens, but RobertaForCausalLM holds 20"):
        decoder(torch.ones(1, 21, dtype=torch.long), torch.randn(1, 3, 12))


def test_missing_folder():
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        HFDecoder(model_name="./nowhere", **GIVEN)


def test_a_memory_that_is_a_slice_is_as_good_as_a_copy() -> None:
    """An image encoder that cuts off its class token hands over a slice, which GPT-2 cannot view."""
    torch.manual_seed(0)
    config = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    decoder = HFDecoder(model_name="gpt2", vocab_size=12, memory_dim=16, config=config).eval()
    tokens, memory = torch.tensor([[1, 5, 7], [1, 4, 2]]), torch.randn(2, 6, 16)
    torch.testing.assert_close(decoder(tokens, memory[:, 1:]), decoder(tokens, memory[:, 1:].contiguous()))
