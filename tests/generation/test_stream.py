"""A token at a time is the same as all at once."""

import pytest
import torch

from velm.generation import GenerationConfig, stream

PAD, BOS, EOS = 0, 1, 2
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "suppress": (PAD, BOS)}


@pytest.mark.parametrize("config", [{}, {"temperature": 1.5}, {"prefix": [4, 4]}, {"must_include": [[5, 3]]}], ids=str)
def test_streamed_equals_written(small_decoder, write, config):
    memory = torch.randn(9, 4, 6, dtype=torch.float64)
    whole = write(small_decoder, memory, max_length=8, seed=0, **config).tokens[:, 0]
    generator = torch.Generator().manual_seed(0)
    config = GenerationConfig(max_length=8, **config)
    steps = list(stream(small_decoder, memory, config=config, generator=generator, **IDS))
    assert all(step.shape == (9,) for step in steps)
    assert torch.equal(torch.stack(steps, dim=1), whole)


def test_a_token_is_handed_out_when_it_is_decided(table):
    decoder, steps = table().train(), []
    step = decoder.step
    decoder.step = lambda token, state: steps.append(len(token)) or step(token, state)
    words = stream(decoder, torch.zeros(2, 2, 6), config=GenerationConfig(min_length=4), **IDS)
    assert steps == []
    next(words)
    assert (steps, decoder.training) == ([2], False)
    next(words)
    assert steps == [2, 2]
    words.close()
    assert decoder.training


@pytest.mark.parametrize("config", [{"num_beams": 2}, {"temperature": 1.0, "num_return": 2}], ids=str)
def test_what_is_decided_at_the_end_cannot_be_streamed(table, config):
    with pytest.raises(ValueError, match=r"the text is decided at the end only. Stream greedily"):
        stream(table(), torch.zeros(1, 2, 6), config=GenerationConfig(**config), **IDS)


def test_reranking_needs_a_pipeline(table, write):
    with pytest.raises(ValueError, match="rerank_by_alignment needs the embeddings of image and caption"):
        write(table(), torch.zeros(1, 2, 6), num_beams=2, rerank_by_alignment=1.0)
