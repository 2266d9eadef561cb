"""A loader that can go on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from velm.data.base import DataError
from velm.data.samplers import PictureBatchSampler
from velm.outputs import Batch

__all__ = ["ResumableLoader"]


class ResumableLoader(DataLoader[Batch]):
    """A `DataLoader` whose state is the number of batches taken from the epoch.

    What comes next is a function of (seed, epoch, place) alone (`PictureBatchSampler`, `CaptionItems`), so that is all
    there is to remember: batches that workers have made ahead are made again, by as many workers as there are then.

        epoch   [ 0 | 1 | 2 | 3 | 4 | ... ]
        state         taken: 2 ^ next, also in another process

    `waited` is how many seconds whoever iterates has waited for batches, since the loader was made.

    Args:
        dataset: the samples.
        batch_sampler: their order; it is told where to begin.
        **options: those of `DataLoader`.
    """

    batch_sampler: PictureBatchSampler

    def __init__(self, dataset: TorchDataset, *, batch_sampler: PictureBatchSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batch_sampler, **options)
        self.taken = 0
        self.waited = 0.0
        self._begin_at = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator: nothing is fetched before it is asked
        self.taken, self._begin_at = self._begin_at, 0
        self.batch_sampler.skip(self.taken)
        asked = perf_counter()
        for batch in super().__iter__():
            self.waited += perf_counter() - asked
            self.taken += 1
            yield batch
            asked = perf_counter()

    def state_dict(self) -> dict[str, int]:
        """{'taken': batches handed out since the epoch began, 'of': batches of the epoch}."""
        return {"taken": self.taken, "of": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration behind the batches that were taken; a whole epoch begins anew.

        Raises:
            DataError: the epoch has another number of batches now, so that there is no such place in it.
        """
        taken, of = state["taken"], state["of"]
        whole = taken in (0, of)
        if not whole and of != len(self):
            raise DataError(
                f"The run stopped after {taken} of the {of} batches of an epoch, and an epoch has {len(self)} now: the "
                f"data, the batch_size or the number of devices has changed. Set them as they were, or go on from a "
                f"checkpoint of an epoch's end."
            )
        self._begin_at = 0 if whole else taken
