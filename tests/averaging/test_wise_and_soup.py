"""A curve's ends are its models; a soup is never worse than its best ingredient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from velm.averaging.average import average, uniform
from velm.averaging.held_out import value_of
from velm.averaging.soup import greedy_soup
from velm.averaging.wise import Point, alphas_of, best_point, wise_curve
from velm.checkpoint import Checkpoint
from velm.errors import ConfigError

NAME = "image_projection.weight"
Make = Callable[..., Checkpoint]


def value(checkpoint: Checkpoint) -> float:
    return float(checkpoint.weights[NAME][0, 0])


def filled(checkpoint: Checkpoint, number: float) -> Checkpoint:
    return replace(checkpoint, weights={**checkpoint.weights, NAME: torch.full((8, 16), number)})


def test_alphas() -> None:
    assert alphas_of("0:1:0.1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert alphas_of("0.2:0.9:0.3") == [0.2, 0.5, 0.8]


@pytest.mark.parametrize("text", ["0.5", "0:1", "1:0:0.1", "0:1:0", "0:2:0.5", "a:b:c", "-1:1:0.5", "nan:1:0.1"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--wise '.*': give start:end:step between 0, the first checkpoint, and 1, the"
    ):
        alphas_of(text)


def test_the_curve_goes_from_one_model_to_the_other(fine_tuned: Make) -> None:
    one, two = filled(fine_tuned(1), 1.0), filled(fine_tuned(2), 3.0)
    curve = list(wise_curve(one, two, alphas_of("0:1:0.25"), value))
    assert [point.metrics for point in curve] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert best_point(curve, lambda number: -abs(number - 2.4)).alpha == 0.75
    assert best_point(curve, lambda number: 0.0).alpha == 0.5
    assert best_point([Point(0.0, 1.0), Point(1.0, 2.0)], lambda number: number).alpha == 1.0


def test_a_soup_takes_what_does_not_make_it_worse(fine_tuned: Make) -> None:
    """The score is the nearness to 1: 0.9 and 1.2 come first, whose mean is 1.05; 0.7 makes it 0.93, worse."""
    checkpoints = [replace(filled(fine_tuned(1), number), path=str(number)) for number in (0.7, 1.2, 0.9, 1.25)]
    tried = greedy_soup(checkpoints, lambda checkpoint: -abs(value(checkpoint) - 1))
    assert [each.checkpoint.path for each in tried] == ["0.9", "1.2", "1.25", "0.7"]
    assert [each.used for each in tried] == [True, True, False, False]
    used = [each.checkpoint for each in tried if each.used]
    assert value(average(used, uniform(len(used)))) == pytest.approx(1.05)
    assert [each.own for each in tried] == pytest.approx([-0.1, -0.2, -0.25, -0.3])
    assert [each.soup for each in tried] == pytest.approx([-0.1, -0.05, -0.35 / 3, -0.2 / 3], abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_soup_is_at_least_as_good_as_its_best(fine_tuned: Make, seed: int) -> None:
    numbers = torch.rand(5, generator=torch.Generator().manual_seed(seed)).tolist()
    checkpoint = fine_tuned(1)
    tried = greedy_soup([filled(checkpoint, number) for number in numbers], lambda each: -abs(value(each) - 0.5))
    assert max(each.soup for each in tried if each.used) >= max(each.own for each in tried)


def test_a_metric_is_found_by_its_key_or_as_the_mean_of_both_directions() -> None:
    metrics = {"image_to_text/recall@1": 0.2, "text_to_image/recall@1": 0.4, "caption/cider": 0.7}
    assert value_of(metrics, "recall@1") == pytest.approx(0.3)
    assert value_of(metrics, "text_to_image/recall@1") == 0.4
    assert value_of(metrics, "caption/cider") == 0.7
    with pytest.raises(ConfigError, match=r"--metric: there is no 'recal@1' here. Did you mean 'recall@1'"):
        value_of(metrics, "recal@1")
