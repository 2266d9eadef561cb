"""Tokenizing a text that is given in parts: at once, then cut by offsets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

__all__ = ["PartsEncoder"]

CUT = "\ue000cut\ue001"  # private characters: no text of people holds them


class PartsEncoder:
    """Cuts the ids of a tokenizer of the `tokenizers` library into those of the parts of a text.

    Args:
        backend: a `tokenizers.Tokenizer`; its special tokens count as such. It is copied.
    """

    def __init__(self, backend: Any) -> None:
        from tokenizers import AddedToken, Tokenizer

        self.backend = Tokenizer.from_str(backend.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = False
        self.backend.add_special_tokens([AddedToken(CUT, normalized=False, special=True)])
        self.cut_id = self.backend.token_to_id(CUT)

    def __call__(self, parts: Sequence[str | None]) -> list[list[int]]:
        """As `Tokenizer.to_ids_of_parts`."""
        texts = [CUT if part is None else part for part in parts]
        ends = list(accumulate(map(len, texts)))
        ids: list[list[int]] = [[] for _ in parts]
        encoding = self.backend.encode("".join(texts), add_special_tokens=False)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token != self.cut_id:
                ids[bisect_right(ends, max(start, end - 1))].append(token)
        return ids
