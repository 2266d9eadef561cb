"""How many directions a set of embeddings uses: a collapse shows before recall does."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["effective_rank"]


def effective_rank(embeds: Tensor) -> float:
    """The effective rank of Roy & Vetterli (2007), equation 3: exp of the entropy of the normalised singular values.

    1 where all embeddings point one way, min(n, E) where they use every direction alike. Nothing is subtracted (as in
    RankMe, arXiv 2210.02885): noise around a single point is a collapse, not a full rank.

    Args:
        embeds: float (n, E), not all zero.
    """
    wide = embeds.detach().double()
    small = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    singular = torch.linalg.eigvalsh(small).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return float(torch.special.entr(share).sum().exp())
