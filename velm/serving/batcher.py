"""Batches inputs of different requests for the one thread that computes.

While the thread computes a batch, inputs that arrive form the next ones, so a batch waits for others only as long as
some are known to come (their images are being decoded), at most `max_wait`. Groups that cannot share a batch (texts,
images, captions with other options) take turns by their oldest input.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from velm.errors import RequestError

__all__ = ["Batcher", "Kind", "Place"]


@dataclass(frozen=True)
class Kind:
    """What may share a batch.

    Attributes:
        name: of the operation.
        options: equal for inputs of one batch.
        weight: rows of the model's batch that an input takes, such as the beams of a search.
    """

    name: str
    options: Hashable = None
    weight: int = 1


@dataclass
class _Job:
    item: Any
    future: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Bounded queue in front of one thread; its methods run on the event loop.

    Args:
        compute: results of a batch, one per item, called in the thread; an exception among them, or raised, fails its
            items only: a batch that raises is computed again item by item.
        max_batch: rows of a batch.
        max_wait: seconds that an input waits for others that are being decoded.
        limit: inputs that are accepted and not yet answered.
        observe: called with the name of the kind and the number of items of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Kind, list[Any]], Sequence[Any]],
        *,
        max_batch: int,
        max_wait: float,
        limit: int,
        observe: Callable[[str, int], None] = lambda name, size: None,
    ) -> None:
        self.compute, self.max_batch, self.max_wait, self.limit = compute, max_batch, max_wait, limit
        self.observe = observe
        self.thread = ThreadPoolExecutor(1, "velm-model")
        self.taken = 0
        self.coming = 0
        self._groups: dict[Kind, deque[_Job]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to compute; requires a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop; inputs that still wait are cancelled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for job in [job for group in self._groups.values() for job in group]:
            job.future.cancel()
        self.thread.shutdown(wait=True)

    @contextmanager
    def place(self, count: int = 1) -> Iterator[Place]:
        """Places for `count` inputs, until the block ends, also where its client has gone.

        Raises:
            RequestError: 503, fewer places are free.
        """
        if self.taken + count > self.limit:
            raise RequestError(
                f"The server is busy: {self.taken} of {self.limit} places are taken, and this request needs {count}. "
                "Try again in a moment.",
                503,
                kind="overloaded",
            )
        place = Place(self, count)
        self.taken += count
        self.coming += count
        try:
            yield place
        finally:
            place.arrive()
            self.taken -= count

    async def submit(self, inputs: Sequence[tuple[Kind, Any]]) -> list[Any]:
        """Results of the inputs, in order; cancelling this takes them out of the queue."""
        loop = asyncio.get_running_loop()
        jobs = [_Job(item, loop.create_future()) for _, item in inputs]
        for (kind, _), job in zip(inputs, jobs, strict=True):
            self._groups.setdefault(kind, deque()).append(job)
        self._changed.set()
        return await asyncio.gather(*(job.future for job in jobs))

    async def _run(self) -> None:
        while True:
            kind = self._oldest()
            if kind is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            size = max(1, self.max_batch // kind.weight)
            await self._gather(kind, size)
            jobs = self._take(kind, size)
            if jobs:
                await self._work(kind, jobs)

    def _oldest(self) -> Kind | None:
        """The kind of the input that waits longest; inputs whose clients have gone are dropped."""
        for kind, group in list(self._groups.items()):
            while group and group[0].future.done():
                group.popleft()
            if not group:
                del self._groups[kind]
        return min(self._groups, key=lambda kind: self._groups[kind][0].since, default=None)

    async def _gather(self, kind: Kind, size: int) -> None:
        """Wait for a full batch while inputs are coming, not longer than `max_wait` after the first one."""
        end = self._groups[kind][0].since + self.max_wait
        while self.coming and len(self._groups[kind]) < size and (left := end - time.monotonic()) > 0:
            self._changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def _take(self, kind: Kind, size: int) -> list[_Job]:
        group = self._groups[kind]
        jobs: list[_Job] = []
        while group and len(jobs) < size:
            job = group.popleft()
            if not job.future.done():
                jobs.append(job)
        return jobs

    async def _work(self, kind: Kind, jobs: list[_Job]) -> None:
        self.observe(kind.name, len(jobs))
        items = [job.item for job in jobs]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self.thread, self._results, kind, items)
        except BaseException:  # the server stops
            for job in jobs:
                job.future.cancel()
            raise
        for job, result in zip(jobs, results, strict=True):
            if job.future.done():
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    def _results(self, kind: Kind, items: list[Any]) -> Sequence[Any]:
        try:
            results = self.compute(kind, items)
            if len(results) != len(items):
                raise RuntimeError(f"{kind.name}: {len(results)} results of {len(items)} inputs")
            return results
        except Exception as error:
            if len(items) == 1:
                return [error]
            return [self._results(kind, [item])[0] for item in items]


class Place:
    """Places in the queue of a batcher, see `Batcher.place`."""

    def __init__(self, batcher: Batcher, count: int) -> None:
        self.batcher, self.count, self.coming = batcher, count, True

    def arrive(self) -> None:
        """The inputs are read, or never will be: no batch waits for them any more."""
        if self.coming:
            self.coming = False
            self.batcher.coming -= self.count
            self.batcher._changed.set()

    async def submit(self, inputs: Sequence[tuple[Kind, Any]]) -> list[Any]:
        """As `Batcher.submit`."""
        submitted = self.batcher.submit(inputs)
        self.arrive()
        return await submitted
