"""Data loaders that report bad samples, restart killed workers and resume in the middle of an epoch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from velm._compat import disable_worker_signal_handler, worker_exit_codes
from velm.data.bad_samples import BadSample
from velm.data.batches.samplers import ImageBatchSampler
from velm.errors import DataError, RunFailedError, WorkerDiedError
from velm.outputs import Batch

__all__ = ["RESTARTS", "LoadedBatch", "Loader", "ResumableLoader"]

RESTARTS = 3
"""How many times per epoch killed workers are restarted."""


@dataclass
class LoadedBatch:
    """What workers send to the main process.

    Attributes:
        batch: the collated samples.
        bad_samples: the samples that could not be read.
    """

    batch: Any
    bad_samples: list[BadSample]

    def pin_memory(self) -> LoadedBatch:
        return LoadedBatch(self.batch.pin_memory(), self.bad_samples)


class _CollateLoaded:
    """Collates the samples that could be read and lists the others beside the batch."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> LoadedBatch:
        bad_samples = [sample for sample in samples if isinstance(sample, BadSample)]
        return LoadedBatch(self.collate(samples), bad_samples)


class Loader(DataLoader[Batch]):
    """A `DataLoader` that yields batches and collects their bad samples for `take_bad_samples`.

    A killed worker raises where the next batch is requested, never in the middle of an optimizer step.

    Args:
        dataset: the samples.
        collate_fn: samples and bad samples to a batch.
        **options: of `DataLoader`.
    """

    def __init__(
        self, dataset: TorchDataset, *, collate_fn: Callable[[Any], Any] | None = None, **options: Any
    ) -> None:
        if not isinstance(collate_fn, _CollateLoaded):  # else Lightning makes this loader again
            collate_fn = _CollateLoaded(collate_fn or default_collate)
        super().__init__(dataset, collate_fn=collate_fn, **options)
        self._bad_samples: list[BadSample] = []

    def take_bad_samples(self) -> list[BadSample]:
        """The bad samples of the batches yielded since the last call."""
        bad_samples, self._bad_samples = self._bad_samples, []
        return bad_samples

    def _batches(self) -> Iterator[Batch]:
        """
        Raises:
            RunFailedError: a worker has ended by itself, which it would do again.
        """
        disable_worker_signal_handler()
        iterator = DataLoader.__iter__(self)
        try:
            for loaded in _received(iterator):
                self._bad_samples += loaded.bad_samples
                yield loaded.batch
        except RuntimeError as error:
            failed = [code for code in worker_exit_codes(iterator) if code > 0]
            if not _is_dead_worker(error) or not failed:
                raise
            raise RunFailedError(
                f"A worker process of the data loader ended with an error of its own (exit code {failed[0]}), which "
                f"it printed above: most often an import that only the main process can do. Look at its last line; "
                f"--data.num_workers=0 reads the data in the main process."
            ) from None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator: fetches when the first is requested
        """
        Raises:
            WorkerDiedError: the system has killed a worker.
        """
        try:
            yield from self._batches()
        except RuntimeError as error:
            if not _is_dead_worker(error):
                raise
            raise _worker_died(error, self.num_workers) from None


class ResumableLoader(Loader):
    """A `Loader` whose state is the number of batches yielded in the epoch.

    Batches are a function of (seed, epoch, index) alone (`ImageBatchSampler`, `CaptionSamples`), so this number is all
    that resuming needs: batches that workers had prefetched are made again, by any number of workers.

        epoch   [ 0 | 1 | 2 | 3 | 4 | ... ]
        state         taken: 2 ^ next, also in another process, or with new workers after one was killed

    Attributes:
        taken: batches yielded in this epoch.
        waited: seconds spent waiting for batches since the loader was made.

    Args:
        dataset: the samples.
        batch_sampler: their order; it skips the batches already taken.
        **options: of `Loader`.
    """

    batch_sampler: ImageBatchSampler

    def __init__(self, dataset: TorchDataset, *, batch_sampler: ImageBatchSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batch_sampler, **options)
        self.taken = 0
        self.waited = 0.0
        self._first = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """
        Raises:
            WorkerDiedError: the system has killed a worker more than `RESTARTS` times in this epoch.
        """
        self.taken, self._first = self._first, 0
        for deaths in range(RESTARTS + 1):
            self.batch_sampler.skip(self.taken)
            try:
                requested = perf_counter()
                for batch in self._batches():
                    self.waited += perf_counter() - requested
                    self.taken += 1
                    yield batch
                    requested = perf_counter()
                return
            except RuntimeError as error:
                if not _is_dead_worker(error):
                    raise
                self._iterator = None  # ends the other persistent workers
                if deaths == RESTARTS:
                    raise _worker_died(error, self.num_workers) from None
                warnings.warn(
                    f"{_first_line(error)} The workers are restarted and continue with the next batch "
                    f"({deaths + 1} of {RESTARTS} restarts in this epoch). {_advice(self.num_workers)}",
                    stacklevel=2,
                )

    def state_dict(self) -> dict[str, int]:
        """{'taken': batches yielded since the epoch began, 'of': batches per epoch, 'plan': hash of their sizes}."""
        return {"taken": self.taken, "of": len(self), "plan": self.batch_sampler.plan}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration after the batches taken, or a new epoch if all were.

        Raises:
            DataError: the epoch is cut into other batches now, so the position does not exist.
        """
        taken, of = state["taken"], state["of"]
        at_boundary = taken in (0, of)
        same = of == len(self) and state.get("plan", self.batch_sampler.plan) == self.batch_sampler.plan
        if not at_boundary and not same:
            has = f"{len(self)} now" if of != len(self) else f"{len(self)} others now"
            raise DataError(
                f"The run stopped after {taken} of the {of} batches of an epoch, and an epoch has {has}: the "
                f"data, the batch_size or the number of devices has changed. Restore them (batch_size times devices "
                f"is what counts), or resume from a checkpoint of an epoch's end."
            )
        self._first = 0 if at_boundary else taken


def _received(iterator: Any) -> Iterator[LoadedBatch]:
    """The batches of a `DataLoader`'s iterator, with one error for a worker that ends, also while it sends a batch."""
    while True:
        try:
            loaded = next(iterator)
        except StopIteration:
            return
        except (ConnectionError, EOFError, FileNotFoundError):  # the tensors of a batch come over the worker's socket
            if not worker_exit_codes(iterator, seconds=1):
                raise
            raise RuntimeError("DataLoader worker (pid unknown) ended while it sent a batch.") from None
        yield loaded


def _is_dead_worker(error: RuntimeError) -> bool:
    return str(error).startswith("DataLoader worker (pid")


def _first_line(error: RuntimeError) -> str:
    return f"{str(error).splitlines()[0].rstrip('. ')}: killed by the system, most often because memory ran out."


def _advice(workers: int) -> str:
    return (
        f"Set data.num_workers below {workers}, data.batch_size lower, or give the job more memory "
        f"(/dev/shm too, in a container)."
    )


def _worker_died(error: RuntimeError, workers: int) -> WorkerDiedError:
    return WorkerDiedError(f"{_first_line(error)} {_advice(workers)}")
