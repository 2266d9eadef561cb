"""`balance`: how the losses of a step become one number, and one gradient.

    losses L_i ── times weight w_i ──> w_i L_i ── policy ──> what is minimised

`fixed` is their sum; `uncertainty` learns a factor for each; `projection` minimises the sum and removes conflicts from
the gradient (see `velm.training.balancing.gradients`). An own policy is a class with a dotted path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from random import Random

import torch
from torch import Tensor, nn

from velm import registry
from velm.errors import ConfigError


class Policy(nn.Module, ABC):
    """The contract: a plain function of the weighted losses, the same on every device.

    Learnable scalars of a policy are trained without decay, at `optimizer.lr_scale: {balance: ...}`, and saved.
    """

    projects: bool = False
    """Whether `coefficients` recombine the losses' gradients; `forward` is then the sum."""

    @abstractmethod
    def forward(self, weighted: Mapping[str, Tensor]) -> Tensor:
        """The number to minimise, float (), for the weighted losses {name: w_i L_i, float ()}."""

    def factors(self) -> dict[str, Tensor]:
        """The factor of each weighted loss in the sum, {name: float ()}; 1 for names that are missing."""
        return {}

    def coefficients(self, products: Tensor, step: int) -> Tensor:
        """c, float (k,); the gradient of the shared parameters is the sum of c_i g_i.

        Args:
            products: float (k, k), g_i . g_j of the losses' gradients on the parameters they share.
            step: optimizer steps taken; seeds random numbers, which must be the same on every device.
        """
        return products.new_ones(len(products))


class Fixed(Policy):
    """The sum of w_i L_i."""

    def forward(self, weighted: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(list(weighted.values())).sum()


class Uncertainty(Policy):
    """Learned weights (Kendall et al. 2018, arXiv 1705.07115, equation 10).

    With s_i = log(sigma_i ** 2), which starts at 0 and is numerically safer to learn (their section 3.2), a
    cross-entropy contributes L / sigma ** 2 + log sigma:

        sum over i of  exp(-s_i) w_i L_i + s_i / 2

    At the optimum exp(-s_i) w_i L_i is 1/2: all losses have the same weight, however small they are, and the weight of
    a loss that approaches 0 is unbounded. The sum may be negative.

    Args:
        losses: the names of the losses; set by the task.
    """

    def __init__(self, *, losses: list[str]) -> None:
        super().__init__()
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in losses})

    def forward(self, weighted: Mapping[str, Tensor]) -> Tensor:
        terms = [torch.exp(-s) * weighted[name] + s / 2 for name, s in self.log_variance.items()]
        return torch.stack(terms).sum()

    def factors(self) -> dict[str, Tensor]:
        return {name: torch.exp(-s.detach()) for name, s in self.log_variance.items()}


class Projection(Fixed):
    """Projects conflicting gradients (PCGrad, Yu et al. 2020, arXiv 2001.06782, algorithm 1).

    On the parameters that losses share, the component of g_i along every g_j with a negative product is removed,
    g_i -= min(0, g_i . g_j) / |g_j|^2 g_j, for all other j in random order. The gradient is the sum of the results;
    without conflicts it is the plain sum.
    """

    projects = True

    def coefficients(self, products: Tensor, step: int) -> Tensor:
        """Every projected gradient is a combination of the g_j; row i of `own` holds the coefficients of gradient i."""
        count = len(products)
        own = torch.eye(count, dtype=products.dtype, device=products.device)
        tiny = torch.finfo(products.dtype).tiny
        draw = Random(step)
        for i in range(count):
            others = [j for j in range(count) if j != i]
            draw.shuffle(others)
            for j in others:
                along = (own[i] @ products[:, j]).clamp(max=0)
                own[i, j] -= along / products[j, j].clamp(min=tiny)
        return own.sum(0)


def build_policy(config: registry.PartConfig, weights: Mapping[str, float]) -> Policy:
    """The policy of `balance: {name: ..., options}` for losses of these weights.

    Raises:
        ConfigError: an unknown policy or option; or anything but `fixed` for a single loss or with a weight of 0.
    """
    policy: Policy = registry.balancing_policies.build(config, losses=list(weights))
    if isinstance(policy, Fixed) and not policy.projects:
        return policy
    name = registry.split_config(config, "balancing policy")[0]
    if len(weights) < 2:
        raise ConfigError(
            f"balance: {name} holds losses against each other, and `losses:` lists {next(iter(weights))} alone: "
            f"leave balance out, or add a loss."
        )
    nothing = [loss for loss, weight in weights.items() if weight == 0]
    if nothing:
        raise ConfigError(
            f"balance: {name} cannot balance {nothing[0]}, whose weight is 0: give it a weight above 0, take it out of "
            f"`losses:`, or set balance: fixed."
        )
    return policy
