"""Scores of averages on held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velm.checkpoint import Checkpoint
from velm.data.base import Record
from velm.errors import ConfigError
from velm.evaluation.evaluate import measure
from velm.evaluation.extras import Extras
from velm.pipeline import Pipeline
from velm.pipeline.loading import pipeline_of
from velm.util import did_you_mean

__all__ = ["HeldOut", "Metrics", "Scores", "value_of"]

Metrics = Mapping[str, Mapping[str, float]]
"""Metrics by the keys of metrics.json, for each dataset by its name."""
DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class HeldOut:
    """Held-out records and how they are measured.

    Attributes:
        records: of one split.
        extras: metrics on request.
        max_bad: fraction of the records, in [0, 1], that may be unreadable.
    """

    records: Sequence[Record]
    extras: Extras
    max_bad: float


class Scores:
    """Measures checkpoints of one model, one after another, in one pipeline.

    Args:
        data: held-out data by name.
        metric: see `value_of`; None: `recall@1`, or `caption/cider` of a model that does not align.
        batch_size: images per batch.
        pipeline: options of `velm.pipeline.loading.pipeline_of`: device, precision, image_size.
    """

    def __init__(
        self, data: Mapping[str, HeldOut], metric: str | None = None, *, batch_size: int = 32, **pipeline: Any
    ) -> None:
        self.data, self.batch_size, self.options = dict(data), batch_size, pipeline
        self._metric = metric
        self._pipeline: Pipeline | None = None

    @property
    def metric(self) -> str:
        """The name of the metric; known after the first measurement if it was not given."""
        if self._metric is None and self._pipeline is not None:
            self._metric = "recall@1" if self._pipeline.aligned else "caption/cider"
        return self._metric or "recall@1"

    def measure(self, checkpoint: Checkpoint) -> dict[str, dict[str, float]]:
        """The metrics on each dataset; captions are generated only if the metric is one of captions."""
        if self._pipeline is None:
            self._pipeline = pipeline_of(checkpoint, **self.options)
        else:
            self._pipeline.model.load_state_dict(checkpoint.weights)
        pipeline = self._pipeline
        options: dict[str, Any] = {"batch_size": self.batch_size, "captions": self.metric.startswith("caption/")}
        metrics = {
            name: measure(pipeline, each.records, extras=each.extras, max_bad=each.max_bad, **options).metrics
            for name, each in self.data.items()
        }
        self.value(metrics)  # an unknown metric is an error of the first measurement
        return metrics

    def value(self, metrics: Metrics) -> float:
        """The mean of the metric over the datasets."""
        return sum(value_of(each, self.metric) for each in metrics.values()) / len(metrics)

    def score(self, metrics: Metrics) -> float:
        """`value`, negated where a lower one is better (ranks)."""
        return -self.value(metrics) if self.metric.endswith("rank") else self.value(metrics)


def value_of(metrics: Mapping[str, float], name: str) -> float:
    """A metric by its key, or the mean of both directions of retrieval: `recall@1`.

    Raises:
        ConfigError: there is no such metric.
    """
    keys = [name] if name in metrics else [f"{direction}/{name}" for direction in DIRECTIONS]
    if not set(keys) <= set(metrics):
        short = [key.partition("/")[2] for key in metrics if key.startswith(DIRECTIONS[0])]
        guess = did_you_mean(name, [*metrics, *short])
        raise ConfigError(
            f"--metric: there is no {name!r} here.{guess} There are: {', '.join([*short, *metrics])}; metrics of "
            f"captions begin with caption/."
        )
    return sum(metrics[key] for key in keys) / len(keys)
