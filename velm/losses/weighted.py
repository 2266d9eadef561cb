"""The losses under `losses:` of a config, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import normalize

from velm import registry
from velm.errors import ConfigError
from velm.losses.base import Loss
from velm.outputs import Batch, TeacherEmbeddings, VisionLanguageOutput

__all__ = ["WeightedLosses", "build_losses"]


class WeightedLosses(nn.ModuleDict):
    """Losses by name; `forward` returns their weighted sum and each unweighted value.

    Args:
        losses: by name.
        weights: by the same names, each >= 0.
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__(losses)
        self.weights = dict(weights)

    def named(self) -> dict[str, Loss]:
        """The losses by name."""
        return cast("dict[str, Loss]", dict(self.items()))

    @property
    def requires(self) -> frozenset[str]:
        """The outputs that the model computes for them."""
        return frozenset().union(*(loss.requires for loss in self.named().values()))

    @property
    def share(self) -> bool:
        """Whether every alignment loss distributes its own work, so that embeddings need not be gathered."""
        return all(loss.shares for loss in self.named().values() if loss.aligns)

    @property
    def teacher_loss(self) -> Loss | None:
        """The loss that reads a teacher's embeddings, if there is one.

        Raises:
            ConfigError: there are several.
        """
        found = {name: loss for name, loss in self.named().items() if getattr(loss, "teacher", None) is not None}
        if len(found) > 1:
            raise ConfigError(f"`losses:` lists several with a teacher, {' and '.join(found)}; one is possible.")
        return next(iter(found.values()), None)

    @property
    def hard_negatives(self) -> int:
        """K, the hard negatives per pair that a loss reads; 0: none does."""
        return max((getattr(loss, "hard_negatives", 0) for loss in self.named().values()), default=0)

    def without_teacher(self) -> WeightedLosses:
        """The losses that read no teacher's embeddings; it shares their parameters."""
        return self.only(lambda loss: getattr(loss, "teacher", None) is None)

    def only(self, keep: Callable[[Loss], bool]) -> WeightedLosses:
        """The losses that `keep` chooses; it shares their parameters."""
        return self._named([name for name, loss in self.named().items() if keep(loss)])

    def _named(self, names: Sequence[str]) -> WeightedLosses:
        return WeightedLosses({name: self[name] for name in names}, {name: self.weights[name] for name in names})

    def stand_in_teacher(self, rows: int, embed_dim: int) -> TeacherEmbeddings | None:
        """Random embeddings of `rows` samples in place of a teacher's, for checks and plans; None without a teacher.

        Args:
            rows: B.
            embed_dim: E, the width of the student's.
        """
        if self.teacher_loss is None:
            return None
        generator = torch.Generator().manual_seed(0)
        width = getattr(self.teacher_loss, "teacher_dim", None) or embed_dim
        image, text = (normalize(torch.randn(rows, width, generator=generator), dim=1) for _ in range(2))
        return TeacherEmbeddings(image, text, scale=10.0)

    def in_steps(self, devices: int) -> WeightedLosses:
        """The losses that a training step computes; it shares their parameters.

        Those of a weight above 0, or all if there is none; on several devices all, since each device needs a gradient
        of every parameter.
        """
        kept = [name for name, weight in self.weights.items() if weight > 0 or devices > 1]
        return self._named(kept) if 0 < len(kept) < len(self) else self

    def forward(
        self,
        output: VisionLanguageOutput,
        batch: Batch,
        group: dist.ProcessGroup | None = None,
        fraction: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, float (), and the losses {name: float ()}; see `each` for the arguments."""
        parts = self.each(self, output, batch, group, fraction)
        return self.weighted(parts), parts

    def each(
        self,
        names: Iterable[str],
        output: VisionLanguageOutput,
        batch: Batch,
        group: dist.ProcessGroup | None = None,
        fraction: float = 1.0,
    ) -> dict[str, Tensor]:
        """The losses `names`, {name: float ()}.

        Args:
            names: which losses.
            output: of the whole batch; with a group, of this rank's rows.
            batch: likewise.
            group: passed to losses with `shares`; None: the batch is complete.
            fraction: number of this rank's samples divided by its mean over the ranks; factor on a loss that is a mean
                over this rank's samples.
        """
        return {name: self._value(self.named()[name], output, batch, group, fraction) for name in names}

    @staticmethod
    def _value(
        loss: Loss, output: VisionLanguageOutput, batch: Batch, group: dist.ProcessGroup | None, fraction: float
    ) -> Tensor:
        if group is not None and loss.shares:
            return loss(output, batch, group)
        if loss.additive or loss.aligns or fraction == 1:
            return loss(output, batch)
        if fraction == 0:  # no samples: no mean, and every rank needs a gradient of every parameter
            values = [output.decoder.hidden, *output.output_projection.parameters(), *loss.parameters()]
            return torch.stack([value.sum() for value in values]).sum() * 0
        return loss(output, batch) * fraction

    def weighted(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, float (), of the losses {name: float ()}."""
        values = [self.weights[name] * value for name, value in parts.items()]
        return torch.stack(values).sum() if values else torch.zeros(())


def build_losses(losses: Mapping[str, Mapping[str, Any] | None], *, embed_dim: int = 256) -> WeightedLosses:
    """Build losses from `{name: {weight: 1.0, options}}`.

    Args:
        losses: the config.
        embed_dim: E, for losses whose constructor takes it.

    Raises:
        ConfigError: an unknown loss or option, or a weight that is not a finite number >= 0.
    """
    modules, weights = {}, {}
    for name, options in losses.items():
        rest = dict(options or {})
        weight = rest.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ConfigError(f"The weight of the loss {name!r} is a number >= 0; got {weight!r}.")
        key = _key(name)
        if key in modules:
            raise ConfigError(f"`losses:` lists two that would be logged as {key!r}: rename one of the classes.")
        modules[key] = registry.losses.build({"name": name, **rest}, embed_dim=embed_dim)
        weights[key] = float(weight)
    return WeightedLosses(modules, weights)


def _key(name: str) -> str:
    """The name of a loss in logs and checkpoints; of a dotted path, `my_pkg.losses:Focal`, the class name."""
    return name.rpartition(":")[2].replace(".", "_")
