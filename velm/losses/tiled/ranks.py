"""Collectives among the ranks that each hold a share of one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["RankGroup", "RingExchange"]


class RankGroup:
    """One rank of W, each holding b rows of a batch of B; without a process group all methods are identities.

    b may differ from rank to rank and may be 0. Gathered tensors are the ranks' rows in rank order. Every rank must
    call the same methods in the same order.

    Args:
        group: the process group; None if this process holds the whole batch.
        own: any tensor (b, ...) of this rank, for b and the device.

    Attributes:
        rows: b of each rank.
    """

    def __init__(self, group: dist.ProcessGroup | None, own: Tensor) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.rows = [len(own)]
        if group is not None:
            rows = torch.empty(self.size, dtype=torch.int64, device=own.device)
            dist.all_gather_into_tensor(rows, rows.new_tensor([len(own)]), group=group)
            self.rows = rows.tolist()

    @property
    def total(self) -> int:
        """B."""
        return sum(self.rows)

    def pad(self, own: Tensor) -> Tensor:
        """(b, ...), with zeros up to the largest b of all ranks."""
        missing = max(self.rows) - len(own)
        return torch.cat([own, own.new_zeros(missing, *own.shape[1:])]) if missing else own

    def gather(self, own: Tensor) -> Tensor:
        """(b, ...) of every rank, as (B, ...)."""
        if self.group is None:
            return own
        own = self.pad(own)
        gathered = own.new_empty(self.size * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(gathered, own.contiguous(), group=self.group)
        if min(self.rows) == len(own):
            return gathered
        return torch.cat([part[:rows] for part, rows in zip(gathered.split(len(own)), self.rows, strict=True)])

    def reduce_scatter(self, values: Tensor) -> Tensor:
        """This rank's rows (b, ...) of the sum over ranks of `values` (B, ...).

        Implemented as all-to-all and a local sum: gloo's reduce-scatter is an all-reduce, which sends twice as much.
        """
        if self.group is None:
            return values
        own = self.rows[self.rank]
        parts = values.new_empty(self.size * own, *values.shape[1:])
        dist.all_to_all_single(parts, values, [own] * self.size, self.rows, group=self.group)
        return parts.view(self.size, own, *values.shape[1:]).sum(0)

    def sum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.group is not None:
            values = values.clone()
            dist.all_reduce(values, operation, group=self.group)
        return values

    def logsumexp(self, values: Tensor) -> Tensor:
        """Elementwise log of the sum over ranks of exp(values); -inf where all are."""
        if self.group is None:
            return values
        peak = self.max(values)
        return self.sum((values - peak.clamp(min=torch.finfo(peak.dtype).min)).exp()).log() + peak

    def ring_exchange(self, tensors: Sequence[Tensor]) -> RingExchange:
        """Start sending tensors to the next rank of the ring and receiving the previous rank's."""
        return RingExchange(self, tensors)


class RingExchange:
    """Tensors being sent round the ring; until `wait` returns they may be read but not written."""

    def __init__(self, ranks: RankGroup, tensors: Sequence[Tensor]) -> None:
        self.sent = [tensor.contiguous() for tensor in tensors]
        if ranks.group is None or ranks.size == 1:
            self.received, self.works = self.sent, []
            return
        self.received = [torch.empty_like(tensor) for tensor in self.sent]
        group = ranks.group
        after, before = (dist.get_global_rank(group, (ranks.rank + step) % ranks.size) for step in (1, -1))
        self.works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, tensor, after, group) for tensor in self.sent]
            + [dist.P2POp(dist.irecv, tensor, before, group) for tensor in self.received]
        )

    def wait(self) -> list[Tensor]:
        """The tensors of the previous rank."""
        for work in self.works:
            work.wait()
        return self.received
