"""The mean of weights is theirs bit for bit at the ends, and of one model only; the file is an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import velm
from velm.averaging.average import average, notes, uniform
from velm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from velm.data.text.word import WordTokenizer
from velm.errors import CheckpointError, ConfigError

Make = Callable[..., Checkpoint]


def with_weight(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> Checkpoint:
    return replace(checkpoint, weights={**checkpoint.weights, name: tensor})


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    for weights in ("weights", "loss_weights"):
        mine, theirs = getattr(one, weights), getattr(other, weights)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    assert one.logit_scale == pytest.approx(other.logit_scale)


def test_a_single_weight_gives_that_checkpoint_bit_for_bit(fine_tuned: Make) -> None:
    one, two, three = fine_tuned(1), fine_tuned(2), fine_tuned(3)
    assert_equal(average([one, two, three], [1, 0, 0]), one)
    assert_equal(average([one, two, three], [0, 0, 1]), three)
    assert_equal(average([one, one], [0.3, 0.7]), one)


def test_weights_are_the_weighted_mean(fine_tuned: Make) -> None:
    one, two = fine_tuned(1), fine_tuned(4)
    mean = average([one, two], [0.25, 0.75])
    for name, tensor in mean.weights.items():
        torch.testing.assert_close(tensor, 0.25 * one.weights[name] + 0.75 * two.weights[name])
    assert mean.logit_scale == pytest.approx(10**0.25 * 40**0.75)  # of logarithms, as the loss stores it
    log_scales = [each.loss_weights["contrastive.log_scale"] for each in (one, two, mean)]
    assert log_scales[2] == pytest.approx(0.25 * log_scales[0] + 0.75 * log_scales[1])
    assert mean.origin == {
        "average": [{"checkpoint": str(one.path), "weight": 0.25}, {"checkpoint": str(two.path), "weight": 0.75}]
    }
    assert (mean.data, mean.tokenizer, mean.raw_weights) == (two.data, two.tokenizer, None)


def test_of_a_training_with_a_moving_average_that_is_averaged(fine_tuned: Make) -> None:
    one, two = fine_tuned(1), fine_tuned(2)
    trained = {name: torch.zeros_like(tensor) for name, tensor in one.weights.items()}
    assert_equal(average([replace(one, raw_weights=trained), two], [0.5, 0.5]), average([one, two], [0.5, 0.5]))


def test_half_precision_is_averaged_in_single_precision(fine_tuned: Make) -> None:
    name = "image_projection.weight"
    ones, twos = (torch.full((8, 16), value, dtype=torch.bfloat16) for value in (1.0, 1.0078125))
    one, two = with_weight(fine_tuned(1), name, ones), with_weight(fine_tuned(2), name, twos)
    mean = average([one, two, two], uniform(3)).weights[name]
    assert mean.dtype == torch.bfloat16
    assert torch.equal(mean, ((ones.float() + 2 * twos.float()) / 3).bfloat16())


def test_integers_and_infinities_stay(fine_tuned: Make) -> None:
    mask = torch.tensor([0.0, -torch.inf])
    one, two = (
        with_weight(with_weight(fine_tuned(n), "decoder.mask", mask), "norm.num_batches_tracked", torch.tensor(n))
        for n in (1, 2)
    )
    mean = average([one, two], [0.5, 0.5])
    assert torch.equal(mean.weights["decoder.mask"], mask)
    assert torch.equal(mean.weights["norm.num_batches_tracked"], torch.tensor(2))


def test_the_file_is_an_ordinary_checkpoint(fine_tuned: Make, tmp_path: Path) -> None:
    mean = average([fine_tuned(1), fine_tuned(2)], [0.5, 0.5])
    write_checkpoint(mean, tmp_path / "mean.ckpt")
    again = read_checkpoint(tmp_path / "mean.ckpt")
    assert_equal(again, mean)
    assert again.origin == mean.origin
    pipeline = velm.load(tmp_path / "mean.ckpt")
    assert pipeline.logit_scale == pytest.approx(mean.logit_scale)
    assert pipeline.embed_texts(["a red circle"]).shape == (1, 8)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0], "--weights has 1 numbers (1) for 2 checkpoints: give one for each"),
        ([0.5, 0.4], "--weights 0.5 0.4 have the sum 0.9: give numbers from 0 to 1 with the sum 1, e.g. 0.5 0.5"),
        ([1.5, -0.5], "--weights 1.5 -0.5 have the sum 1"),
        ([float("nan"), 1.0], "--weights nan 1 have the sum nan"),
    ],
)
def test_other_weights_are_refused(fine_tuned: Make, weights: list[float], says: str) -> None:
    checkpoint = fine_tuned(1)
    with pytest.raises(ConfigError) as error:
        average([checkpoint, checkpoint], weights)
    assert says in str(error.value)


VIT: dict[str, Any] = {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"embed_dim": 4},
            r"image_projection.weight is \(8, 16\) in the first and \(4, 16\) in the second, and 1 more di",
        ),
        (
            {"losses": {"contrastive": {}}},
            r"decoder\.\S+ is in the first only, and \d+ more differ. Average checkpoints of one archi",
        ),
        ({"image_encoder": {**VIT, "depth": 2}}, r"image_encoder.blocks.1\S* is in the second only"),
        (
            {"image_encoder": {**VIT, "heads": 4}},
            "image_encoder.heads is 2 in the first and 4 in the second, so that equ",
        ),
        ({"memory": ["text"]}, r"memory is \['image'\] in the first and \['text'\] in the second"),
    ],
    ids=["shape", "missing", "left over", "heads", "memory"],
)
def test_another_model_is_refused(fine_tuned: Make, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=r"1.ckpt and \S*2.ckpt cannot be averaged: .*" + says):
        average([fine_tuned(1), fine_tuned(2, **changes)], [0.5, 0.5])


def test_options_of_training_and_defaults_make_no_difference(fine_tuned: Make) -> None:
    changed = {**VIT, "dropout": 0.5, "mlp_ratio": 4.0}
    assert average(
        [fine_tuned(1), fine_tuned(2, image_encoder=changed, losses={"triplet": {}, "captioning": {}})], [0.5, 0.5]
    )


def test_another_tokenizer_is_refused(fine_tuned: Make) -> None:
    one, two = fine_tuned(1), fine_tuned(2)
    words = list(one.tokenizer["state"]["words"])
    other = WordTokenizer.from_state({**one.tokenizer["state"], "words": ["soup", *words[1:]]})
    two = replace(two, tokenizer={"name": "word", "state": other.state()})
    says = r"tokenizers differ \(word of 16 tokens, word of 16, of which 11 are common\), .*data.tokenizer: byte"
    with pytest.raises(CheckpointError, match=says):
        average([one, two], [0.5, 0.5])
    same = {**one.tokenizer["state"], "options": {**one.tokenizer["state"]["options"], "max_size": 99}}
    assert average([one, replace(two, tokenizer={"name": "word", "state": same})], [0.5, 0.5])


def test_other_integers_are_refused(fine_tuned: Make) -> None:
    one, two = (with_weight(fine_tuned(n), "decoder.table", torch.tensor([n])) for n in (1, 2))
    with pytest.raises(CheckpointError, match=r"decoder.table holds other integers in each, which have no mean"):
        average([one, two], [0.5, 0.5])


def test_notes_say_what_has_no_mean(fine_tuned: Make) -> None:
    one, two = fine_tuned(1), fine_tuned(2)
    assert notes([one, two], "mean.ckpt") == []
    statistics = "image_encoder.norm.running_mean"
    one, two = (with_weight(each, statistics, torch.full((4,), float(n))) for n, each in enumerate((one, two)))
    two = replace(two, logit_scale=None, loss_weights={}, transform={"image_size": 64, "resize": "crop"})
    batch_norm, losses, scale, images = notes([one, two], "mean.ckpt")
    assert "Statistics of batch norm (image_encoder.norm.running_mean and 0 more)" in batch_norm
    assert (
        "velm fit ... --model.pretrained=mean.ckpt --model.optimizer.lr=1e-12 --trainer.max_epochs=1; take"
        in batch_norm
    )
    assert losses == "Weights of losses that not all checkpoints have are left out: contrastive.log_scale."
    assert scale == "logit_scale is left out, because not all checkpoints have one."
    assert "'image_size': 32" in images
    assert "the average has the latter" in images
    mean = average([one, two], [0.5, 0.5])
    assert (mean.logit_scale, mean.loss_weights) == (None, {})
    assert torch.equal(mean.weights[statistics], torch.full((4,), 0.5))
