"""Projectors: the memory of the encoders as vectors that a language model reads before its words."""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm.errors import ConfigError
from velm.layers.transformer import TransformerBlock

__all__ = ["Projector", "ProjectorName", "initial_norm", "shuffle"]

ProjectorName = Literal["linear", "affine", "mlp", "resampler"]
INIT_STD = 0.02  # as word vectors, where no norm is given: larger prefixes drown the words at first


def shuffle(memory: Tensor, side: int) -> Tensor:
    """Join each square of side x side neighbouring positions of a square grid into one vector.

    As `pixel_shuffle` of Idefics3 and nanoVLM: the vectors of a row of the square follow each other, row after row.

    Args:
        memory: float (B, N, D), N a square number, in row-major order.
        side: of the joined squares, in positions.

    Returns:
        float (B, N / side^2, D * side^2).

    Raises:
        ValueError: the positions form no square that can be cut so.
    """
    if side == 1:
        return memory
    count = memory.shape[1]
    grid = math.isqrt(count)
    if grid * grid != count or grid % side:
        raise ValueError(
            f"shuffle {side} joins squares of {side} x {side} positions, and the memory has {count}: they form no "
            f"square grid whose side is a multiple of {side}. Choose another image_size, or shuffle: 1."
        )
    cells = memory.unflatten(1, (grid // side, side, grid // side, side))  # (B, H, s, W, s, D)
    return cells.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def initial_norm(option: float | str | None, embedding: nn.Module) -> float | Tensor | None:
    """The norm of the prefix's vectors that the option `prefix_norm` asks for.

    Args:
        option: a number; 'match', the median norm of the word vectors; None.
        embedding: of a language model, tokens to vectors; Gemma's multiplies by sqrt(width) inside.

    Raises:
        ValueError: another option.
    """
    if option == "match":
        size = int(embedding.num_embeddings)  # type: ignore[arg-type]
        tokens = torch.arange(0, size, max(1, size // 4096))
        with torch.no_grad():
            return embedding(tokens).float().norm(dim=-1).median()
    if option is not None and (isinstance(option, str | bool) or not option > 0):
        raise ValueError(f"prefix_norm is null, 'match' or a number above 0; got {option!r}.")
    return option


class Projector(nn.Module):
    """The memory (B, N, memory_dim) as a prefix (B, P, dim).

    Args:
        name: linear (nanoVLM), affine, with a bias (PaliGemma), mlp (two linear maps and a GELU, LLaVA-1.5, arXiv
            2310.03744) or resampler (learned queries that attend over the memory, Flamingo, arXiv 2204.14198).
        memory_dim: width of the memory.
        dim: width of the language model's word vectors.
        shuffle: side of the squares of positions that are joined first, which divides P by its square.
        queries: P, for the resampler.
        depth: blocks of the resampler.
        norm: of every vector of the prefix at the start of training, after which one factor is learnt for all of them;
            the map then starts with weights of variance 1 / inputs, so that the GELU of an mlp is no straight line and
            a step of the optimizer turns no vector by much. None: the vectors are as the map gives them.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        name: ProjectorName,
        memory_dim: int,
        dim: int,
        *,
        shuffle: int = 1,
        queries: int = 32,
        depth: int = 2,
        norm: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        if name not in get_args(ProjectorName):
            raise ValueError(f"projector is one of {', '.join(get_args(ProjectorName))}; got {name!r}.")
        if shuffle < 1 or queries < 1 or depth < 1:
            raise ValueError(f"shuffle, prefix_tokens and depth are at least 1; got {shuffle}, {queries} and {depth}.")
        self.side = shuffle
        width = memory_dim * shuffle**2
        if name == "linear":
            self.map: nn.Module = nn.Linear(width, dim, bias=False)
        elif name == "mlp":
            self.map = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))
        else:  # affine, resampler
            self.map = nn.Linear(width, dim)
        self.scale = None if norm is None else nn.Parameter(torch.as_tensor(norm, dtype=torch.float32).clone())
        self.queries: nn.Parameter | None = None
        if name == "resampler":
            heads = next(heads for heads in (12, 8, 6, 4, 3, 2, 1) if dim % heads == 0)
            self.queries = nn.Parameter(torch.randn(queries, dim) * INIT_STD)
            self.blocks = nn.ModuleList(TransformerBlock(dim, heads=heads, memory_dim=dim) for _ in range(depth))
            self.norm = nn.LayerNorm(dim)
        for module in self.map.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD if norm is None else module.in_features**-0.5)

    def forward(self, memory: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The prefix, and which of its vectors are content.

        Args:
            memory: float (B, N, memory_dim).
            mask: bool (B, N), True on content; None: all of it.

        Raises:
            ConfigError: squares of positions are joined, and the memory has padding, so text.
        """
        if mask is not None and self.side > 1:
            raise ConfigError(
                f"decoder.shuffle is {self.side}, which joins positions of the image, and the memory holds text too. "
                f"Set decoder.shuffle to 1, or model.memory to [image]."
            )
        x = self.map(shuffle(memory, self.side))
        if self.queries is None:
            return self._scaled(x), mask
        prefix = self.queries.to(x.dtype).expand(len(x), -1, -1)
        for block in self.blocks:
            prefix = block(prefix, memory=x, memory_mask=mask)
        return self._scaled(self.norm(prefix)), None

    def spread(self, weights: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights over the prefix as weights over the memory.

        A square of joined positions gives each of them the same part; a vector of the resampler passes its weight on by
        its own attention in the last block.

        Args:
            weights: float (B, T, P).
            memory, mask: as of `forward`.

        Returns:
            float (B, T, N) with the same sums.
        """
        if self.queries is not None:
            *blocks, last = cast("list[TransformerBlock]", list(self.blocks))
            x = self.map(shuffle(memory, self.side))
            prefix = self.queries.to(x.dtype).expand(len(x), -1, -1)
            for block in blocks:
                prefix = block(prefix, memory=x, memory_mask=mask)
            passed_on = last.weights(last.self_attend(prefix), last.memory_keys_values(x), mask)
            weights = weights @ passed_on.to(weights.dtype)
        if self.side == 1:
            return weights
        grid = math.isqrt(memory.shape[1]) // self.side
        squares = weights.unflatten(-1, (grid, grid)) / self.side**2
        return squares.repeat_interleave(self.side, -2).repeat_interleave(self.side, -1).flatten(-2)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale is None else F.normalize(x, dim=-1) * self.scale.to(x.dtype)
