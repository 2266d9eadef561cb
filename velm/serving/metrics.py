"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters, histograms and gauges of one server, in a registry of their own.

    Args:
        depth: the number of inputs that are accepted and not yet answered.
    """

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, depth: Callable[[], float]) -> None:
        disable_created_metrics()  # a series more for each, with the time of its start
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("route", "status")
        self.requests = Counter("velm_requests", "Requests by route and status.", labels, registry=self.registry)
        self.seconds = Histogram(
            "velm_request_seconds", "Time from a request to the end of its answer.", ("route",), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.batches = Histogram(
            "velm_batch_size", "Inputs of a call of the model.", ("kind",), buckets=_SIZES, registry=self.registry
        )
        self.active = Gauge("velm_requests_in_flight", "Requests that are being answered.", registry=self.registry)
        queue = Gauge("velm_queue_depth", "Inputs that are accepted and not yet answered.", registry=self.registry)
        queue.set_function(depth)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
