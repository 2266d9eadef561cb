"""Collectives among the ranks that each hold a share of one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["RankGroup", "RingExchange"]


class RankGroup:
    """One rank of W, each holding b rows of a batch of W * b; without a process group all methods are identities.

    Gathered tensors are the ranks' rows in rank order. Every rank must call the same methods in the same order.

    Args:
        group: the process group; None if this process holds the whole batch.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def gather(self, own: Tensor) -> Tensor:
        """(b, ...) of every rank, as (W * b, ...)."""
        if self.group is None:
            return own
        gathered = own.new_empty(self.size * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(gathered, own.contiguous(), group=self.group)
        return gathered

    def reduce_scatter(self, values: Tensor) -> Tensor:
        """This rank's rows (b, ...) of the sum over ranks of `values` (W * b, ...).

        Implemented as all-to-all and a local sum: gloo's reduce-scatter is an all-reduce, which sends twice as much.
        """
        if self.group is None:
            return values
        parts = torch.empty_like(values)
        dist.all_to_all_single(parts, values, group=self.group)
        return parts.unflatten(0, (self.size, -1)).sum(0)

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
