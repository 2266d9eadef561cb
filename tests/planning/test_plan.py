"""The costs of a config."""

from __future__ import annotations

from velm.planning.plan import costs_of, setup_of
from velm.planning.step import Costs
from velm.training.run import parse_fit


def costs(losses: str, devices: int) -> Costs:
    config = parse_fit(["--config", "configs/quickstart.yaml", f"--model.losses={losses}"])
    return costs_of(config, 60, setup_of(config, devices))


def test_a_loss_of_weight_0_costs_one_device_nothing() -> None:
    """Several devices compute it: each needs a gradient of every parameter."""
    stopped, alone = "{contrastive: {weight: 0}, captioning: {}}", "{captioning: {}}"
    one, two = costs(stopped, 1), costs(stopped, 2)
    assert one.forward_flops == costs(alone, 1).forward_flops
    assert one.loss_flops == (0, 0, 0)
    assert two.forward_flops[0] > one.forward_flops[0]
    assert two.forward_flops == costs("{contrastive: {}, captioning: {}}", 2).forward_flops
