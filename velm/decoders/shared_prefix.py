"""`SharedPrefix`: keys and values of a prefix, held once for each memory and read by all of its beams or samples.

              keys of the prefix (B, P)     keys of the text (R, t)
rows 0 1 2    memory 0                      each row's own
rows 3 4 5    memory 1                      each row's own
              one softmax over both
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["RowOrder", "SharedPrefix", "SharedStep"]


@dataclass(frozen=True)
class SharedPrefix:
    """Prefixes of B memories, read by R rows.

    Attributes:
        keys: of each layer, float (B, H_kv, P, d).
        values: likewise.
        mask: bool (B, P), True on content; None: all of it.
        owners: int64 (R,), the memory of each row.
        order: the rows sorted by memory where the memories have not as many rows each, in order; else None.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None
    owners: Tensor
    order: RowOrder | None = None

    @classmethod
    def of(cls, cache: Any, length: int, mask: Tensor | None) -> SharedPrefix:
        """The first `length` positions of a DynamicCache of transformers, one row each."""
        keys = tuple(layer.keys[:, :, :length] for layer in cache.layers)
        values = tuple(layer.values[:, :, :length] for layer in cache.layers)
        return cls(keys, values, mask, torch.arange(len(keys[0]), device=keys[0].device))

    @property
    def length(self) -> int:
        """P."""
        return self.keys[0].shape[2]

    @property
    def counts(self) -> Tensor:
        """int64 (B,), positions of content."""
        if self.mask is None:
            return torch.full((len(self.keys[0]),), self.length, device=self.owners.device)
        return self.mask.sum(dim=1)

    def select(self, rows: Tensor) -> SharedPrefix:
        """The prefixes of the rows `rows`, int64 (R,); those of memories without a row are dropped."""
        owners = self.owners.index_select(0, rows)
        if torch.equal(owners, self.owners):
            return self
        used, owners = owners.unique(return_inverse=True)
        prefix, memories = self, len(used)
        if memories < len(self.keys[0]):
            keys, values = (tuple(each.index_select(0, used) for each in of) for of in (self.keys, self.values))
            mask = None if self.mask is None else self.mask.index_select(0, used)
            prefix = replace(self, keys=keys, values=values, mask=mask)
        regular = torch.arange(memories, device=owners.device).repeat_interleave(
            max(1, len(owners) // max(1, memories))
        )
        order = None if torch.equal(owners, regular) else RowOrder.by_memory(owners, memories)
        return replace(prefix, owners=owners, order=order)


@dataclass(frozen=True)
class RowOrder:
    """Rows in any order, and as many places for each memory as the one with most rows needs.

    Attributes:
        rows: int64 (B * K,), the row in each place; 0 where a memory has fewer.
        places: int64 (R,), the place of each row.
    """

    rows: Tensor
    places: Tensor

    @classmethod
    def by_memory(cls, owners: Tensor, memories: int, most: int | None = None) -> RowOrder:
        """Of rows whose memories are int64 (R,).

        Args:
            most: K, at least the number of rows of each memory; None: the largest, which waits for the device.
        """
        counts = torch.zeros(memories, dtype=torch.int64, device=owners.device)
        counts = counts.index_add(0, owners, torch.ones_like(owners))
        ordered = owners.argsort(stable=True)
        starts = (counts.cumsum(0) - counts)[owners[ordered]]
        most = int(counts.max()) if most is None else most
        places = torch.empty_like(owners)
        places[ordered] = owners[ordered] * most + torch.arange(len(owners), device=owners.device) - starts
        rows = owners.new_zeros(memories * most)
        rows[places] = torch.arange(len(owners), device=owners.device)
        return cls(rows, places)


@dataclass(frozen=True)
class SharedStep:
    """A view (`velm.decoders.views.View`) of one new position a row, behind `past` others of the text.

    Its keys and values are those of the text alone.
    """

    prefix: SharedPrefix
    past: int
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict, repr=False)

    @property
    def total(self) -> int:
        return self.prefix.length + self.past + 1

    @property
    def places(self) -> Tensor:
        return (self.prefix.counts + self.past).index_select(0, self.prefix.owners)[:, None]

    def mask(self, window: int | None = None) -> Tensor | None:
        """bool (B, P), the positions of the prefix that the rows of a memory see; None: all."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> Tensor | None:
        prefix = self.prefix
        if window is None or window >= self.total:
            return prefix.mask
        mask = prefix.mask if prefix.mask is not None else torch.ones_like(prefix.keys[0][:, 0, :, 0], dtype=torch.bool)
        return mask & (mask.cumsum(dim=1) - 1 > (prefix.counts + self.past - window)[:, None])

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, dropout: float
    ) -> Tensor:
        rows, heads, _, width = query.shape
        shared_keys, shared_values = self.prefix.keys[module.layer_idx], self.prefix.values[module.layer_idx]
        if window is not None:
            key, value = key[:, :, -window:], value[:, :, -window:]
        query = (query * scaling).reshape(rows, key.shape[1], -1, width)  # (R, H_kv, heads of one key, d)
        scores = self._by_memory(query) @ shared_keys.mT
        mask = self.mask(window)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        of_text = self._by_memory(query @ key.mT)
        weights = torch.cat([scores, of_text], dim=-1).softmax(dim=-1).to(value.dtype)
        of_prefix, of_text = weights.split([self.prefix.length, key.shape[2]], dim=-1)
        attended = self._by_row(of_prefix @ shared_values) + self._by_row(of_text) @ value
        return attended.reshape(rows, 1, heads, -1)

    def _by_memory(self, x: Tensor) -> Tensor:
        """(R, H_kv, G, n) as (B, H_kv, K * G, n), where K rows belong to each of B memories."""
        if self.prefix.order is not None:
            x = x.index_select(0, self.prefix.order.rows)
        return x.unflatten(0, (len(self.prefix.keys[0]), -1)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: Tensor) -> Tensor:
        """The inverse of `_by_memory`."""
        memories, order = len(x), self.prefix.order
        count = len(self.prefix.owners) if order is None else len(order.rows)
        x = x.unflatten(2, (count // memories, -1)).transpose(1, 2).flatten(0, 1)
        return x if order is None else x.index_select(0, order.places)
