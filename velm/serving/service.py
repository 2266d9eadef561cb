"""The state of a server: its engine, batcher, readers of images, metrics and whether it is ready."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from velm.errors import RequestError
from velm.search import Index
from velm.serving.batcher import Batcher
from velm.serving.engine import Engine
from velm.serving.metrics import Metrics
from velm.serving.settings import Settings

__all__ = ["Loaded", "Service"]


@dataclass(frozen=True)
class Loaded:
    """What a server computes with.

    Attributes:
        engine: of the model.
        hash: of the model, as an index states it.
        index: of images to search, or None.
    """

    engine: Engine
    hash: str
    index: Index | None = None


class Service:
    """An asynchronous context: entered, it loads the model in the thread that will compute.

    Args:
        settings: of the server.
        load: opens the model and the index.
        on_ready: called when the model is loaded.
        on_failure: called if `load` raised, with the exception; None: `ready` raises it.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Loaded],
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self.settings, self.load, self.on_ready, self.on_failure = settings, load, on_ready, on_failure
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.active = 0
        self.loaded: Loaded | None = None
        self.metrics = Metrics(lambda: self.batcher.taken)
        self.readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "velm-read")
        self.batcher = Batcher(
            lambda kind, items: self.model.engine.compute(kind, items),
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            limit=settings.queue,
            observe=lambda kind, size: self.metrics.batches.labels(kind).observe(size),
        )

    async def __aenter__(self) -> Service:
        self.batcher.start()
        self._loading = asyncio.create_task(self._load())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state = "draining"
        self._loading.cancel()
        await self.batcher.close()
        self.readers.shutdown(wait=True, cancel_futures=True)

    @property
    def model(self) -> Loaded:
        """What was loaded.

        Raises:
            RequestError: 503, not yet.
        """
        if self.loaded is None:
            raise RequestError("The model is being loaded; try again in a moment.", 503, kind="not_ready")
        return self.loaded

    async def ready(self) -> None:
        """Wait until the model is loaded; raises what loading raised."""
        await asyncio.shield(self._loading)

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        """The value of a function that decodes or tokenizes, called in the pool of readers."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function, *args)

    async def _load(self) -> None:
        try:
            self.loaded = await asyncio.get_running_loop().run_in_executor(self.batcher.thread, self.load)
        except Exception as error:
            if self.on_failure is None:
                raise
            self.on_failure(error)
            return
        if self.state == "loading":
            self.state = "ready"
            self.on_ready()
