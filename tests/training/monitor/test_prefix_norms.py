"""The norms of the prefix and the words are those that the language model reads; `prefix_norm` makes them equal."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests.decoders.test_llm import CONFIGS
from velm.model import build_model
from velm.outputs import Batch
from velm.training.monitor.prefix_norms import PrefixNorms, prefix_norms

PAD = 3


def make_model(name: str = "llama", **decoder):
    torch.manual_seed(0)
    return build_model(
        {
            "image_encoder": {"name": "cnn", "dim": 16, "widths": [8]},
            "decoder": {"name": f"llm/{name}", "config": CONFIGS[name], **decoder},
            "losses": {"captioning": None},
            "vocab_size": 32,
            "pad_id": PAD,
        }
    ).train()


def make_batch() -> Batch:
    torch.manual_seed(1)
    tokens = torch.randint(4, 32, (3, 6))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    tokens[1, 4:], mask[1, 4:] = PAD, False
    return Batch(torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), tokens, mask, torch.arange(3))


def start(model, batch: Batch, **changes) -> dict[str, float]:
    """What the callback logs."""
    logged: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics))
    precision = SimpleNamespace(forward_context=nullcontext)
    options = {"global_step": 0, "is_global_zero": True, "loggers": [logger], "precision_plugin": precision, **changes}
    PrefixNorms().on_train_batch_start(
        SimpleNamespace(**options), SimpleNamespace(model=model, sharded=False), batch, 0
    )
    return logged


def test_words_are_measured_as_the_model_reads_them():
    batch = make_batch()
    for name, factor in (("llama", 1.0), ("gemma3_text", 4.0)):  # Gemma multiplies by sqrt(16)
        model = make_model(name)
        weight = model.decoder.model.get_input_embeddings().weight
        expected = factor * weight.detach()[batch.tokens[batch.mask]].norm(dim=-1).median()
        assert prefix_norms(model, batch)[1] == pytest.approx(float(expected), rel=1e-5)


def test_nothing_of_the_model_changes():
    model, batch = make_model(), make_batch()
    before, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    random = torch.get_rng_state()
    prefix_norms(model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("projector", ["linear", "resampler"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_matched_norms_are_equal_and_quiet(name, projector):
    model = make_model(name, projector=projector, prefix_norm="match")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logged = start(model, make_batch())
    assert logged["watch/prefix_norm/image"] == pytest.approx(logged["watch/prefix_norm/word"], rel=0.3)


def test_norms_far_apart_are_a_warning_with_what_to_set():
    with pytest.warns(UserWarning, match=r"median norm of 7, and the word .* Set model\.decoder\.prefix_norm: match"):
        start(make_model(prefix_norm=7.0), make_batch())
    with pytest.warns(UserWarning, match="median norm of 0.001, and"):
        start(make_model(prefix_norm=0.001), make_batch())


def test_a_resumed_run_and_other_decoders_measure_nothing():
    model = make_model(prefix_norm=7.0)
    other = build_model(
        {
            "image_encoder": {"name": "cnn", "dim": 16, "widths": [8]},
            "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
            "losses": {"captioning": None},
            "vocab_size": 32,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert start(model, make_batch(), global_step=5) == start(other, make_batch()) == {}


def test_git_has_other_advice():
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = build_model(
        {
            "image_encoder": {"name": "cnn", "dim": 16, "widths": [8]},
            "decoder": {"name": "git", "config": config},
            "losses": {"captioning": None},
            "vocab_size": 32,
            "pad_id": PAD,
        }
    )
    with torch.no_grad():
        model.decoder.model.embeddings.LayerNorm.weight.fill_(100.0)
    with pytest.warns(UserWarning, match="Train the projection of the memory at a lower or higher learning rate"):
        start(model, make_batch())
