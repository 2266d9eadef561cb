"""Laws of the decoder behind a prefix, and of GIT's."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from velm.decoders.git import GitDecoder
from velm.generation import GenerationConfig, generate
from velm.pretrained.weights import skip_pretrained
from velm.testing import check_decoder

CONFIG = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 24, "hidden_dropout_prob": 0.1,
}  # fmt: skip
GIVEN = {"vocab_size": 32, "pad_id": 3, "memory_dim": 12, "config": CONFIG}


@pytest.fixture
def decoder() -> GitDecoder:
    torch.manual_seed(0)
    return GitDecoder(**GIVEN).eval()


def test_it_keeps_the_contract():
    report = check_decoder(lambda: GitDecoder(**GIVEN), pad_id=3, memory_dim=12)
    assert report.ok, str(report)


def test_it_is_transformers_git(decoder):
    config = transformers.GitConfig(**CONFIG, vocab_size=32, vision_config={"hidden_size": 12, "image_size": 32})
    model = transformers.GitForCausalLM(config).eval()
    model.git.load_state_dict(decoder.model.state_dict(), strict=False)
    model.output.load_state_dict(decoder.output_projection.state_dict())
    memory, tokens = torch.randn(2, 5, 12), torch.randint(4, 32, (2, 6))
    model.git.image_encoder.forward = lambda *args, **kwargs: transformers.modeling_outputs.BaseModelOutput(memory)
    expected = model(input_ids=tokens, pixel_values=torch.zeros(2, 3, 4, 4)).logits[:, 5:]
    torch.testing.assert_close(decoder.output_projection(decoder(tokens, memory)), expected, atol=1e-5, rtol=0)


def test_the_prefix_sees_itself_and_no_text(decoder):
    memory = torch.randn(1, 5, 12)
    hidden = decoder(torch.tensor([[1, 7, 9]]), memory)
    assert torch.equal(hidden[:, :2], decoder(torch.tensor([[1, 7, 8]]), memory)[:, :2])
    later = memory.clone()
    later[:, -1] += 1.0
    prefix = [
        decoder.run(decoder.embed_prefix(m, None)[0], decoder._view(m, 5, None), None)[:, 0] for m in (memory, later)
    ]
    assert not torch.equal(*prefix)


def test_masked_memory_is_not_read(decoder):
    memory, tokens = torch.randn(2, 5, 12), torch.tensor([[1, 7, 9], [1, 8, 4]])
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    changed = memory.clone()
    changed[0, 3:] = 9.0
    torch.testing.assert_close(decoder(tokens, memory, mask), decoder(tokens, changed, mask))
    short = decoder(tokens[:1], memory[:1, :3])
    torch.testing.assert_close(decoder(tokens, memory, mask)[:1], short, atol=1e-5, rtol=0)
    logits, state = decoder.step(tokens[:, 0], decoder.start(memory, mask))
    torch.testing.assert_close(decoder.output_projection(short[:, 0]), logits[:1], atol=1e-5, rtol=0)
    assert state.select(torch.tensor([1, 1, 0])).mask.tolist() == mask[[1, 1, 0]].tolist()


def test_a_state_is_never_changed_by_stepping_on(decoder):
    start = decoder.start(torch.randn(2, 5, 12))
    _, state = decoder.step(torch.tensor([4, 5]), start)
    first, _ = decoder.step(torch.tensor([6, 7]), state)
    decoder.step(torch.tensor([8, 9]), state.select(torch.tensor([1, 0])))
    decoder.step(torch.tensor([8, 9]), start)
    again, _ = decoder.step(torch.tensor([6, 7]), state)
    assert torch.equal(first, again)


def test_beams_of_one_are_beams_of_a_batch(decoder):
    memory = 3 * torch.randn(3, 5, 12)
    options = {"bos_id": 1, "eos_id": 2, "pad_id": 3, "config": GenerationConfig(num_beams=3, max_length=8)}
    together = generate(decoder, memory, **options)
    for row in range(3):
        alone = generate(decoder, memory[row : row + 1], **options)
        assert torch.equal(alone.tokens[0], together.tokens[row, :, : alone.tokens.shape[2]])
        torch.testing.assert_close(alone.scores[0], together.scores[row])


def test_rebuilt_from_its_config(decoder):
    assert "image" not in json.dumps(list(decoder.state_dict()))
    with skip_pretrained():
        rebuilt = GitDecoder(**{**GIVEN, **decoder.portable_config}).eval()
    rebuilt.load_state_dict(decoder.state_dict())
    tokens, memory = torch.tensor([[1, 7, 9]]), torch.randn(1, 5, 12)
    assert torch.equal(decoder(tokens, memory), rebuilt(tokens, memory))


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        ({**CONFIG, "vocab_size": 40}, {}, "git has vocab_size 40, the tokenizer 32 tokens. Leave vocab_size out"),
        ({**CONFIG, "vocab_size": 40}, {"start_id": 40}, "start_id 40 is no token of git"),
        ({**CONFIG, "hidden_size": "wide"}, {}, "config of hf/git is refused"),
    ],
)
def test_errors_say_what_is_allowed(config, more, message):
    with pytest.raises(ValueError, match=message):
        GitDecoder(**{**GIVEN, "config": config}, **more)


def test_too_long_a_text(decoder):
    with pytest.raises(ValueError, match="25 tokens, but GitDecoder holds 24"):
        decoder(torch.ones(1, 25, dtype=torch.long), torch.randn(1, 5, 12))
