"""That the proofs prove: equal where the work is the same, and an error where it is not. On small sizes."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import inputs, ours, proofs
from benchmarks.harness.workload import Settings
from benchmarks.peers import contrastive, weights
from benchmarks.steps import run_of
from benchmarks.workloads import rnn_step

EXACT = Settings(precision="32", threads=1)
SMALL = {"width": 64, "depth": 1}


def test_texts_have_real_lengths_and_both_sides_read_the_same() -> None:
    batch = inputs.feed(3, 64)
    assert 10 < batch.lengths.float().mean() < 18
    for tokens, length in zip(batch.tokens, batch.lengths, strict=True):
        assert (tokens[0], tokens[length - 1]) == (inputs.BOS, inputs.EOS)
        assert (tokens[length:] == inputs.PAD).all()
        assert ((tokens[1 : length - 1] != inputs.PAD) & (tokens[1 : length - 1] < inputs.BOS)).all()
    assert torch.equal(batch.trimmed, batch.tokens[:, : batch.lengths.max()])
    assert torch.equal(batch.mask, batch.trimmed != inputs.PAD)
    assert torch.equal(batch.tokens, inputs.feed(3, 64).tokens)
    assert not torch.equal(batch.tokens, inputs.feed(4, 64).tokens)


def peer(name: str) -> tuple:
    pytest.importorskip(name, reason="pip install 'velm[bench]'")
    if name == "open_clip":
        translate = partial(weights.from_open_clip, config=contrastive.open_clip_config(**SMALL))
        return contrastive.OpenClipCLIP(contrastive.open_clip_clip(**SMALL), EXACT), translate
    model = contrastive.transformers_clip(**SMALL)
    return contrastive.TransformersCLIP(model, EXACT), partial(weights.from_transformers, config=model.config)


@pytest.mark.parametrize("name", ["open_clip", "transformers"])
def test_the_peers_weights_give_the_same_loss_and_gradients(name: str) -> None:
    theirs, translate = peer(name)
    lines = proofs.same_function(name, ours.Trained(ours.clip_config(**SMALL), EXACT), theirs, translate)
    assert lines[0].what == f"loss, against {name}"
    assert lines[0].ours == pytest.approx(lines[0].theirs, rel=proofs.EXACT)


@pytest.mark.parametrize("name", ["open_clip", "transformers"])
def test_another_function_is_found_out(name: str) -> None:
    theirs, translate = peer(name)

    def wrong(tensors):
        found = translate(tensors)
        found["text_encoder.blocks.0.mlp.0.bias"] = found["text_encoder.blocks.0.mlp.0.bias"] + 0.1
        return found

    with pytest.raises(AssertionError, match="loss, against"):
        proofs.same_function(name, ours.Trained(ours.clip_config(**SMALL), EXACT), theirs, wrong)


def test_coca_has_as_many_weights_and_operations_and_a_smaller_one_is_found_out() -> None:
    pytest.importorskip("open_clip", reason="pip install 'velm[bench]'")
    sizes = {"width": 128, "depth": 2, "decoder_depth": 3}
    model = contrastive.open_clip_coca(**sizes)
    theirs, mine = contrastive.OpenClipCoCa(model, EXACT), ours.Trained(ours.coca_config(**sizes), EXACT)
    batch = inputs.feed(0, 2)
    batch.lengths = torch.full_like(batch.lengths, inputs.CONTEXT)
    steps = (lambda: mine.loss(batch).backward(), lambda: theirs.loss(batch).backward())
    lines = proofs.same_size("open_clip", mine.model, model, steps)
    assert lines[0].what.split(",")[0] == "weights in matrices"
    with pytest.raises(AssertionError, match="FLOPs"):
        proofs.same_size("open_clip", mine.model, model, (lambda: mine.loss(batch), steps[1]))


@pytest.mark.slow
def test_the_loop_computes_what_the_recurrent_model_computes() -> None:
    names = [line.what for line in rnn_step.prove(EXACT)]
    assert names == ["parameters", "loss", "largest relative difference of a parameter's gradient"]


def test_a_step_trains_and_memory_is_made_before_it_is_measured() -> None:
    system = ours.Trained(ours.clip_config(**SMALL), Settings(precision="bf16", threads=1))
    before = [p.detach().clone() for p in system.model.parameters()]
    system.allocate()
    assert all(torch.equal(a, b) for a, b in zip(before, system.model.parameters(), strict=True))
    assert all(p.grad is not None and "exp_avg" in system.optimizer.state[p] for p in system.model.parameters())
    assert run_of(system, lambda number: inputs.feed(number, 4)).step() == 4
    assert not any(torch.equal(a, b) for a, b in zip(before, system.model.parameters(), strict=True) if a.dim() > 1)
