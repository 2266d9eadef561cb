"""Search with numpy is VELM's own search, with its default rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from velm.decoders.transformer import TransformerDecoder
from velm.errors import PipelineError
from velm.generation import GenerationConfig, generate
from velm.onnx.search import Cache, search, search_options

BOS, EOS, V = 1, 2, 12
SUPPRESS = (0, 1, 3)


def _numpy_step(decoder: TransformerDecoder, memory: torch.Tensor) -> tuple[Any, Cache]:
    """A step over the whole text so far, whose cache holds the tokens."""

    def step(token: np.ndarray, cache: Cache) -> tuple[np.ndarray, Cache]:
        tokens = np.concatenate([cache.past["tokens"], token[:, None]], axis=1)
        with torch.no_grad():
            hidden = decoder(torch.from_numpy(tokens), torch.from_numpy(cache.memory["memory"]))
            logits = decoder.output_projection(hidden[:, -1])
        return logits.numpy(), Cache(cache.memory, {"tokens": tokens}, cache.owners)

    rows = len(memory)
    empty = {"tokens": np.zeros((rows, 0), dtype=np.int64)}
    return step, Cache({"memory": memory.numpy()}, empty, np.arange(rows))


@pytest.mark.parametrize("options", [
    {}, {"num_beams": 3, "num_return": 3}, {"num_beams": 4, "length_penalty": 0.0}, {"max_length": 3},
    {"num_beams": 2, "max_length": 2, "num_return": 2}, {"num_beams": V, "num_return": 4}, {"max_length": 1},
])  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_search_is_that_of_velm(options: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    decoder = TransformerDecoder(vocab_size=V, memory_dim=8, dim=16, depth=1, max_length=9).eval()
    torch.nn.init.normal_(decoder.embedding.weight)  # tied: confident predictions, some of eos
    decoder.output_projection.bias.data[EOS] = 1.0
    memory = torch.randn(7, 5, 8)
    config = GenerationConfig(**{"max_length": 20, **options})
    ids = {"bos_id": BOS, "eos_id": EOS, "pad_id": 0, "suppress": SUPPRESS}
    expected = generate(decoder, memory, config=config, **ids)
    step, cache = _numpy_step(decoder, memory)
    chosen = search_options(20, V, **options)
    limit = min(chosen.max_length, 9)
    found = search(step, cache, options=chosen, limit=limit, start_id=BOS, eos_id=EOS, suppress=SUPPRESS)
    for row, texts in enumerate(found):
        count = int((expected.scores[row] > -torch.inf).sum())
        assert len(texts) == count
        for number, text in enumerate(texts):
            tokens = expected.tokens[row, number]
            assert text.tokens == tokens[: len(text.tokens)].tolist()
            assert not tokens[len(text.tokens) :].any()
            assert text.score == pytest.approx(float(expected.scores[row, number]), abs=1e-4)
            assert text.log_prob == pytest.approx(float(expected.log_probs[row, number].sum()), abs=1e-4)


def test_no_rows_give_no_texts() -> None:
    cache = Cache({}, {}, np.arange(0))
    ids = {"start_id": BOS, "eos_id": EOS, "suppress": SUPPRESS}
    assert search(lambda *_: (_, _), cache, options=search_options(5, V), limit=5, **ids) == []


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": 1.0}, r"Unknown \['temperature'\]. Options of writing without torch: max_length, num_beams"),
    ({"num_beams": 0}, "num_beams is 0; it is a whole number of at least 1"),
    ({"max_length": 2.5}, "max_length is 2.5"),
    ({"num_return": 2}, "num_return 2 is more than num_beams 1"),
    ({"num_beams": 13}, "more than the vocabulary has tokens, 12"),
])  # fmt: skip
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        search_options(20, V, **options)
