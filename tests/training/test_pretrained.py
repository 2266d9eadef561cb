"""A new run starts from a checkpoint's weights: what fits is equal, tokens keep their vectors, the rest is listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from velm.data.text.base import Tokenizer
from velm.data.text.word import WordTokenizer
from velm.errors import CheckpointError
from velm.losses.weighted import build_losses
from velm.model import build_model
from velm.training.pretrained import read_source
from velm.training.transfer import Source, Transfer, transfer

pytestmark = pytest.mark.filterwarnings("ignore")


def words(*texts: str) -> WordTokenizer:
    tokenizer = WordTokenizer()
    tokenizer.train(texts)
    return tokenizer


def started(
    source: Source, config: dict[str, Any], tokenizer: Tokenizer, **changes: Any
) -> tuple[torch.nn.Module, dict[str, torch.Tensor], Transfer]:
    """A model of the changed config that starts from the source, its initial weights, and what was transferred."""
    config = {**config, "vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, **changes}
    torch.manual_seed(5)
    model, losses = build_model(config), build_losses(config["losses"])
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model, initial, transfer(source, model, losses, config, tokenizer)


@pytest.fixture
def source(write_checkpoint: Callable[..., Path]) -> Source:
    return read_source(str(write_checkpoint()))


@pytest.fixture
def same_words(source: Source) -> Tokenizer:
    assert source.tokenizer is not None
    return source.tokenizer


def test_the_same_config_starts_with_equal_weights(
    source: Source, tiny_config: dict[str, Any], same_words: Tokenizer
) -> None:
    model, _, result = started(source, tiny_config, same_words)
    assert all(torch.equal(tensor, source.weights[f"model.{name}"]) for name, tensor in model.state_dict().items())
    assert (result.new, result.other_shape, result.left_out, result.tokens) == ([], [], [], None)
    assert "losses.contrastive.log_scale" in result.kept


@pytest.mark.parametrize("texts", [("a red circle and a bowl of soup",), ("soup", "rice")])
def test_tokens_keep_their_vectors_in_another_vocabulary(
    source: Source, tiny_config: dict[str, Any], same_words: Tokenizer, texts: tuple[str, ...]
) -> None:
    new = words(*texts)
    model, initial, result = started(source, tiny_config, new)
    old_ids, state = same_words.vocabulary(), model.state_dict()
    for name in ("text_encoder.embedding.weight", "decoder.embedding.weight", "decoder.output_projection.bias"):
        for token, number in new.vocabulary().items():
            given = source.weights[f"model.{name}"][old_ids[token]] if token in old_ids else initial[name][number]
            assert torch.equal(state[name][number], given), (name, token)
        assert torch.equal(state[name][new.eos_id], source.weights[f"model.{name}"][same_words.eos_id])
    kept = len(old_ids.keys() & new.vocabulary().keys())
    assert result.tokens == (kept, len(new.vocabulary()))
    said = result.describe("a.ckpt", result.kept)
    assert (
        f"{kept} of {len(new.vocabulary())} tokens keep their vectors, {len(new.vocabulary()) - kept} are new." in said
    )


def test_a_vocabulary_as_large_as_a_width_is_told_from_it(
    write_checkpoint: Callable[..., Path], tiny_config: dict[str, Any]
) -> None:
    """16 tokens in another order and a width of 16: only the rows of tokens move."""
    source = read_source(str(write_checkpoint()))
    assert source.tokenizer is not None
    listed = list(source.tokenizer.vocabulary())
    new = WordTokenizer.from_state({**source.tokenizer.state(), "words": listed[::-1]})
    assert new.vocab_size == 16
    model, _, result = started(source, tiny_config, new)
    state = model.state_dict()
    assert torch.equal(state["decoder.embedding.weight"][4], source.weights["model.decoder.embedding.weight"][15])
    square = next(name for name, tensor in state.items() if tensor.shape == (16, 16) and "embedding" not in name
                  and "output_projection" not in name)  # fmt: skip
    assert torch.equal(state[square], source.weights[f"model.{square}"])
    assert not result.other_shape


def test_positions_are_resized(write_checkpoint: Callable[..., Path], tiny_config: dict[str, Any]) -> None:
    learned = {**tiny_config["image_encoder"], "positions": "learned", "position_grid": 4}
    source = read_source(str(write_checkpoint(image_encoder=learned)))
    assert source.tokenizer is not None
    changes = {
        "image_encoder": {**learned, "position_grid": 8},
        "decoder": {**tiny_config["decoder"], "max_length": 30},
    }
    model, initial, result = started(source, tiny_config, source.tokenizer, **changes)
    assert set(result.resized) == {"image_encoder.positions.weight 4 x 4 to 8 x 8", "decoder.positions.weight 24 to 30"}
    grid = source.weights["model.image_encoder.positions.weight"]
    torch.testing.assert_close(model.image_encoder.positions.weight.mean((2, 3)), grid.mean((2, 3)), atol=2e-3, rtol=0)
    lines = model.decoder.positions.weight
    assert torch.equal(lines[:24], source.weights["model.decoder.positions.weight"])
    assert torch.equal(lines[24:], initial["decoder.positions.weight"][24:])


def test_what_does_not_fit_is_listed(source: Source, tiny_config: dict[str, Any], same_words: Tokenizer) -> None:
    changes = {"decoder": {"name": "rnn", "dim": 16}, "embed_dim": 4, "losses": {"sigmoid": {}, "captioning": {}}}
    model, _, result = started(source, tiny_config, same_words, **changes)
    losses = {"losses.sigmoid.log_scale", "losses.sigmoid.bias"}
    said = result.describe("a.ckpt", [*(f"model.{name}" for name in model.state_dict()), *losses])
    assert "Starts from the weights of a.ckpt: " in said
    assert "New, not in the source: " in said and "losses.sigmoid" in said  # noqa: PT018
    assert "image_projection.weight (8, 16) there, (4, 16) here" in said
    assert "Left out, not in this model: " in said and "losses.contrastive" in said  # noqa: PT018
    assert losses <= set(result.new)
    assert "image_encoder" not in said


def test_nothing_that_fits_is_refused(source: Source, tiny_config: dict[str, Any], same_words: Tokenizer) -> None:
    other = {"image_encoder": {"name": "cnn", "dim": 12}, "text_encoder": None, "losses": {"captioning": {}}}
    other["decoder"] = {"name": "rnn", "dim": 12}
    source.weights = {name: tensor for name, tensor in source.weights.items() if "decoder" not in name}
    with pytest.raises(CheckpointError, match=r"model.pretrained: none of the \d+ tensors of .* fits this model of"):
        started(source, tiny_config, same_words, **other)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No checkpoint at"):
        read_source(str(tmp_path / "none.ckpt"))
