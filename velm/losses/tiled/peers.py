"""The processes that hold the rows of one batch between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Peers"]


class Peers:
    """A rank among W ranks, each with as many rows of the batch; alone, everything stays as it is.

    Whole tensors are the ranks' own one after another. Every rank has to call the same methods in the same order.

    Args:
        group: the process group; None for a batch that is whole.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def gather(self, own: Tensor) -> Tensor:
        """Everybody's rows, (W * b, ...), of one's own (b, ...)."""
        if self.group is None:
            return own
        whole = own.new_empty(self.size * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(whole, own.contiguous(), group=self.group)
        return whole

    def own_sum(self, whole: Tensor) -> Tensor:
        """One's own rows (b, ...) of the sum of everybody's (W * b, ...).

        Exchanged rather than reduce-scattered: gloo's reduce-scatter is an all-reduce, which moves twice as much.
        """
        if self.group is None:
            return whole
        parts = torch.empty_like(whole)
        dist.all_to_all_single(parts, whole, group=self.group)
        return parts.unflatten(0, (self.size, -1)).sum(0)

    def sum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.MAX)

    def min(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.MIN)

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.group is not None:
            values = values.clone()
            dist.all_reduce(values, operation, group=self.group)
        return values

    def logsumexp(self, values: Tensor) -> Tensor:
        """log of the sum over ranks of exp(values), entry by entry; -inf where all are."""
        if self.group is None:
            return values
        peak = self.max(values)
        return self.sum((values - peak.clamp(min=torch.finfo(peak.dtype).min)).exp()).log() + peak

    def own(self, whole: Tensor) -> Tensor:
        """One's own rows of everybody's."""
        return whole.unflatten(0, (self.size, -1))[self.rank]

    def pass_on(self, tensors: Sequence[Tensor]) -> Passing:
        """Start sending tensors to the next rank of the ring, and receiving the previous one's."""
        return Passing(self, tensors)


class Passing:
    """Tensors under way round the ring; what is sent may be read meanwhile, and not written."""

    def __init__(self, peers: Peers, tensors: Sequence[Tensor]) -> None:
        self.sent = [tensor.contiguous() for tensor in tensors]
        if peers.group is None or peers.size == 1:
            self.received, self.works = self.sent, []
            return
        self.received = [torch.empty_like(tensor) for tensor in self.sent]
        group = peers.group
        after, before = (dist.get_global_rank(group, (peers.rank + step) % peers.size) for step in (1, -1))
        self.works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, tensor, after, group) for tensor in self.sent]
            + [dist.P2POp(dist.irecv, tensor, before, group) for tensor in self.received]
        )

    def wait(self) -> list[Tensor]:
        """What the previous rank sent."""
        for work in self.works:
            work.wait()
        return self.received
