"""A loader that can go on in the middle of an epoch, also when the system kills one of its workers."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from velm.data.batches.samplers import ImageBatchSampler
from velm.errors import DataError, WorkerDiedError
from velm.outputs import Batch

__all__ = ["RESTARTS", "Loader", "ResumableLoader"]

RESTARTS = 3
"""How often in an epoch workers are started anew before it is given up."""


class Loader(DataLoader[Batch]):
    """A `DataLoader` that speaks of a dead worker where a batch is asked for, and nowhere else.

    torch's own handler of SIGCHLD raises wherever the main process happens to be, in the middle of an optimizer's step
    too. Without it a death is noticed within 5 seconds, by the loader that waits for the worker.
    """

    def _get_iterator(self) -> Any:
        if self.num_workers == 0 or threading.current_thread() is not threading.main_thread():
            return super()._get_iterator()
        previous = signal.getsignal(signal.SIGCHLD)
        try:
            return super()._get_iterator()
        finally:
            signal.signal(signal.SIGCHLD, previous if previous is not None else signal.SIG_DFL)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator: nothing is fetched before it is asked
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            if not _of_dead_worker(error):
                raise
            raise _given_up(error, self.num_workers) from None


class ResumableLoader(Loader):
    """A `DataLoader` whose state is the number of batches taken from the epoch.

    What comes next is a function of (seed, epoch, place) alone (`ImageBatchSampler`, `CaptionItems`), so that is all
    there is to remember: batches that workers have made ahead are made again, by as many workers as there are then.

        epoch   [ 0 | 1 | 2 | 3 | 4 | ... ]
        state         taken: 2 ^ next, also in another process, or with new workers when one has died

    `waited` is how many seconds whoever iterates has waited for batches, since the loader was made.

    Args:
        dataset: the samples.
        batch_sampler: their order; it is told where to begin.
        **options: those of `DataLoader`.
    """

    batch_sampler: ImageBatchSampler

    def __init__(self, dataset: TorchDataset, *, batch_sampler: ImageBatchSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batch_sampler, **options)
        self.taken = 0
        self.waited = 0.0
        self._begin_at = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """
        Raises:
            WorkerDiedError: the system has killed a worker more than `RESTARTS` times in this epoch.
        """
        self.taken, self._begin_at = self._begin_at, 0
        for deaths in range(RESTARTS + 1):
            self.batch_sampler.skip(self.taken)
            try:
                asked = perf_counter()
                for batch in DataLoader.__iter__(self):
                    self.waited += perf_counter() - asked
                    self.taken += 1
                    yield batch
                    asked = perf_counter()
                return
            except RuntimeError as error:
                if not _of_dead_worker(error):
                    raise
                self._iterator = None  # persistent workers: the rest of them end with it
                if deaths == RESTARTS:
                    raise _given_up(error, self.num_workers) from None
                warnings.warn(
                    f"{_first_line(error)} The workers are started anew and go on with the next batch "
                    f"({deaths + 1} of {RESTARTS} times in this epoch). {_advice(self.num_workers)}",
                    stacklevel=2,
                )

    def state_dict(self) -> dict[str, int]:
        """{'taken': batches handed out since the epoch began, 'of': batches of an epoch, 'plan': their hash}."""
        return {"taken": self.taken, "of": len(self), "plan": self.batch_sampler.plan}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration behind the batches that were taken; a whole epoch begins anew.

        Raises:
            DataError: the epoch is cut into other batches now, so that there is no such place in it.
        """
        taken, of = state["taken"], state["of"]
        whole = taken in (0, of)
        same = of == len(self) and state.get("plan", self.batch_sampler.plan) == self.batch_sampler.plan
        if not whole and not same:
            has = f"{len(self)} now" if of != len(self) else f"{len(self)} others now"
            raise DataError(
                f"The run stopped after {taken} of the {of} batches of an epoch, and an epoch has {has}: the "
                f"data, the batch_size or the number of devices has changed. Set them as they were (batch_size times "
                f"devices is what counts), or go on from a checkpoint of an epoch's end."
            )
        self._begin_at = 0 if whole else taken


def _of_dead_worker(error: RuntimeError) -> bool:
    return str(error).startswith("DataLoader worker (pid")


def _first_line(error: RuntimeError) -> str:
    return f"{str(error).splitlines()[0].rstrip('. ')}: the system has killed it, most often for want of memory."


def _advice(workers: int) -> str:
    return (
        f"Set data.num_workers below {workers}, data.batch_size lower, or give the job more memory "
        f"(/dev/shm too, in a container)."
    )


def _given_up(error: RuntimeError, workers: int) -> WorkerDiedError:
    return WorkerDiedError(f"{_first_line(error)} {_advice(workers)}")
