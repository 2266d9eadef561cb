"""Who decays, at which rate, and how the rate moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from velm.errors import ConfigError
from velm.losses.alignment import SigmoidLoss
from velm.training.optim import (
    OptimizerConfig,
    build_optimizer,
    build_schedule,
    parameter_groups,
    warm_ema,
    warmup_cosine,
)


def modules() -> dict[str, nn.Module]:
    tower = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Embedding(5, 4))
    return {"image_encoder": tower, "decoder": nn.Linear(4, 5), "losses": SigmoidLoss()}


def test_norms_biases_and_scales_do_not_decay() -> None:
    parts = modules()
    tower, decoder = parts["image_encoder"], parts["decoder"]
    groups = {group["name"]: group for group in parameter_groups(parts, OptimizerConfig(weight_decay=0.3))}
    decayed = [tower[0].weight, tower[2].weight, tower[4].weight]
    plain = [tower[0].bias, tower[1].weight, tower[1].bias, tower[2].bias, tower[3].weight, tower[3].bias]
    assert [id(p) for p in groups["image_encoder"]["params"]] == [id(p) for p in decayed]
    assert [id(p) for p in groups["image_encoder/no_decay"]["params"]] == [id(p) for p in plain]
    assert [id(p) for p in groups["decoder"]["params"]] == [id(decoder.weight)]
    assert {id(p) for p in groups["losses/no_decay"]["params"]} == {id(p) for p in parts["losses"].parameters()}
    assert "losses" not in groups  # a temperature and a bias are scalars
    assert {g["weight_decay"] for name, g in groups.items() if name.endswith("/no_decay")} == {0.0}
    assert {g["weight_decay"] for name, g in groups.items() if not name.endswith("/no_decay")} == {0.3}


def test_every_parameter_is_in_one_group() -> None:
    parts = modules()
    grouped = [id(p) for group in parameter_groups(parts, OptimizerConfig()) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for module in parts.values() for p in module.parameters())


def test_a_part_has_its_own_rate() -> None:
    config = OptimizerConfig(lr=0.4, lr_scale={"image_encoder": 0.25, "losses": 2.0})
    rates = {group["name"]: group["lr"] for group in parameter_groups(modules(), config)}
    assert rates == {
        "image_encoder": 0.1, "image_encoder/no_decay": 0.1, "decoder": 0.4, "decoder/no_decay": 0.4,
        "losses/no_decay": 0.8,
    }  # fmt: skip


def test_frozen_parameters_are_in_no_group() -> None:
    parts = modules()
    parts["image_encoder"].requires_grad_(False)
    parts["decoder"].bias.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(parts, OptimizerConfig())] == ["decoder", "losses/no_decay"]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        parameter_groups(modules(), OptimizerConfig(lr_scale={"encoder": 0.1}))
    assert str(error.value) == "optimizer.lr_scale names 'encoder'; the parts are image_encoder, decoder, losses."


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 0.0}, "model.optimizer.lr must be positive; got 0.0."),
        ({"lr": math.nan}, "model.optimizer.lr must be positive; got nan."),
        ({"warmup": 1.0}, "model.optimizer.warmup is a fraction of all steps, 0 <= warmup < 1; got 1.0."),
        ({"warmup": 2000.0}, "model.optimizer.warmup is a fraction of all steps"),
        ({"warmup": -0.1}, "got -0.1."),
    ],
)
def test_impossible_numbers_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match="optimizer") as error:
        OptimizerConfig(**options)
    assert says in str(error.value)


def test_the_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    factors = [warmup_cosine(step, total=8, warmup=0.5, min_lr=0.0) for step in range(9)]
    falling = [0.5 * (1 + math.cos(math.pi * progress)) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, *falling])
    assert falling == pytest.approx([1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_the_last_rate_is_min_lr_and_stays_there() -> None:
    assert warmup_cosine(100, total=100, warmup=0.1, min_lr=0.2) == pytest.approx(0.2)
    assert warmup_cosine(999, total=100, warmup=0.1, min_lr=0.2) == pytest.approx(0.2)
    assert warmup_cosine(55, total=100, warmup=0.1, min_lr=0.2) == pytest.approx(0.6)  # half way down
    assert min(warmup_cosine(step, 100, 0.1, 0.2) for step in range(10, 101)) == pytest.approx(0.2)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_runs_take_steps_that_are_not_nothing(total: int) -> None:
    factors = [warmup_cosine(step, total, warmup=0.05, min_lr=0.0) for step in range(total)]
    assert max(factors) == 1.0
    assert min(factors) > 0


def test_the_optimizer_follows_the_schedule_in_every_group() -> None:
    config = OptimizerConfig(lr=0.4, warmup=0.5, betas=(0.8, 0.9), lr_scale={"decoder": 0.5})
    optimizer = build_optimizer({"image_encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)}, config)
    schedule = build_schedule(optimizer, config, total=4)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [0.5, 1.0, 1.0, 0.5]
    assert seen == [pytest.approx([0.4 * f, 0.4 * f, 0.2 * f, 0.2 * f]) for f in expected]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}


def test_the_average_forgets_a_short_runs_beginning() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=warm_ema(0.9))
    expected = 0.0
    for updates in range(200):
        model.weight.data.fill_(updates)
        average.update_parameters(model)
        decay = 0.0 if updates == 0 else min(0.9, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * updates
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-4)
    assert average.module.weight.item() == pytest.approx(199 - 0.9 / 0.1, rel=1e-2)  # a fixed decay's lag


def test_a_module_inside_a_part_has_a_rate_of_its_own() -> None:
    config = OptimizerConfig(lr=0.4, lr_scale={"image_encoder": 0.25, "image_encoder.0": 2.0})
    parts = modules()
    groups = {group["name"]: group for group in parameter_groups(parts, config)}
    assert groups["image_encoder"]["lr"] == groups["image_encoder/no_decay"]["lr"] == 0.1
    assert groups["image_encoder.0"]["lr"] == groups["image_encoder.0/no_decay"]["lr"] == 0.8
    assert groups["image_encoder.0"]["params"] == [parts["image_encoder"][0].weight]
    every = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(every) == sorted(id(p) for part in parts.values() for p in part.parameters())
    with pytest.raises(ConfigError, match=r"'image_encoder.map'; in the image_encoder there are image_encoder.0, "):
        parameter_groups(parts, OptimizerConfig(lr_scale={"image_encoder.map": 2.0}))
