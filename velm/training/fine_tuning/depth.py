"""Depth of a tower's parameters: embeddings, block after block, and what follows the blocks.

embeddings, positions ── block 1 ── ... ── block n ── norm, pooling, projection
        depth 0           1               n            n + 1
"""

from __future__ import annotations

from torch import nn

from velm.training.memory.recompute import blocks_of

__all__ = ["parameter_depths", "repeated_blocks"]


def repeated_blocks(tower: nn.Module) -> list[nn.Module]:
    """The blocks of `blocks_of`, without single layers among them, such as a norm that ends a list of blocks."""
    return [block for block in blocks_of(tower) if any(True for _ in block.children())]


def parameter_depths(tower: nn.Module) -> dict[str, int]:
    """The depth of each parameter by its name: 0 before the blocks, i in block i of n, n + 1 behind them.

    Parameters are in the order of their registration. Those of `nn.Embedding` outside the blocks have depth 0 wherever
    they are registered (relative positions of DeBERTa and MPNet).
    """
    blocks = repeated_blocks(tower)
    inside = {id(p): number for number, block in enumerate(blocks, start=1) for p in block.parameters()}
    embeddings = {id(p) for part in tower.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    depths, depth = {}, 0
    for name, parameter in tower.named_parameters():
        if id(parameter) in inside:
            depths[name] = depth = inside[id(parameter)]
        elif id(parameter) in embeddings:
            depths[name] = 0
        else:
            depths[name] = depth if depth < len(blocks) else depth + 1
    return depths
