"""`StateDict`, a foreign state dict of which every tensor is taken exactly once, and the layouts of CLIP's towers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["StateDict", "class_token", "embedding_rows", "fused_block", "grid_positions", "renamed", "split_block"]


class StateDict:
    """Tensors of a foreign model by name; a name that is missing or left over is an error.

    Args:
        tensors: by name; those in half precision are read as float32.
        source: for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self.tensors, self.source = dict(tensors), source

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        """The tensor, which is no longer left over.

        Raises:
            ValueError: there is none of this name.
        """
        if name not in self.tensors:
            raise ValueError(
                f"its weights lack {name!r}, so they are not complete or belong to another architecture. Download or "
                f"save them again."
            )
        tensor = self.tensors.pop(name)
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    def linear(self, name: str, to: str, bias: bool = True) -> dict[str, Tensor]:
        """Weight and bias of a linear layer, a norm or a convolution, under the name `to`."""
        return {f"{to}.{part}": self.take(f"{name}.{part}") for part in (("weight", "bias") if bias else ("weight",))}

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor whose name starts with `prefix`, which is removed."""
        names = [name for name in self.tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.take(name) for name in names}

    def finish(self, ignored: tuple[str, ...] = ("position_ids",)) -> None:
        """Raise ValueError if a tensor was not taken, except those whose name ends with one of `ignored`."""
        left = [name for name in self.tensors if not name.endswith(ignored)]
        if left:
            more = ", ..." if len(left) > 5 else ""
            raise ValueError(
                f"{len(left)} of its weights have no place in VELM's model ({', '.join(left[:5])}{more}): it is a "
                f"variant of the architecture that VELM does not build."
            )


def renamed(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights with a prefix."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def split_block(state: StateDict, name: str, to: str) -> dict[str, Tensor]:
    """A block of transformers' CLIP, with separate queries, keys and values, as a `TransformerBlock`."""
    keys, values = (state.linear(f"{name}.self_attn.{part}_proj", part) for part in "kv")
    return {
        **state.linear(f"{name}.layer_norm1", f"{to}.attention_norm"),
        **state.linear(f"{name}.self_attn.q_proj", f"{to}.attention.query"),
        **{f"{to}.attention.key_value.{p}": torch.cat([keys[f"k.{p}"], values[f"v.{p}"]]) for p in ("weight", "bias")},
        **state.linear(f"{name}.self_attn.out_proj", f"{to}.attention.output"),
        **state.linear(f"{name}.layer_norm2", f"{to}.mlp_norm"),
        **state.linear(f"{name}.mlp.fc1", f"{to}.mlp.0"),
        **state.linear(f"{name}.mlp.fc2", f"{to}.mlp.3"),
    }


def fused_attention(state: StateDict, name: str, to: str) -> dict[str, Tensor]:
    """torch's `nn.MultiheadAttention` as an `Attention`; its three matrices are one if they have the same width."""
    weights = state.linear(f"{name}.out_proj", f"{to}.output")
    for part in ("weight", "bias"):
        if part == "weight" and f"{name}.q_proj_weight" in state:
            query, keys, values = (state.take(f"{name}.{each}_proj_weight") for each in "qkv")
        else:
            query, keys, values = state.take(f"{name}.in_proj_{part}").chunk(3)
        weights |= {f"{to}.query.{part}": query.clone(), f"{to}.key_value.{part}": torch.cat([keys, values])}
    return weights


def fused_block(state: StateDict, name: str, to: str) -> dict[str, Tensor]:
    """A block of open_clip as a `TransformerBlock`."""
    return {
        **state.linear(f"{name}.ln_1", f"{to}.attention_norm"),
        **fused_attention(state, f"{name}.attn", f"{to}.attention"),
        **state.linear(f"{name}.ln_2", f"{to}.mlp_norm"),
        **state.linear(f"{name}.mlp.c_fc", f"{to}.mlp.0"),
        **state.linear(f"{name}.mlp.c_proj", f"{to}.mlp.3"),
    }


def grid_positions(positions: Tensor) -> Tensor:
    """Positions (N, D) of a square grid in row-major order as (1, D, side, side), see `LearnedGridPositions`."""
    side = round(len(positions) ** 0.5)
    return positions.T.reshape(1, -1, side, side).contiguous()


def class_token(token: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """CLIP's class embedding (D,) and positions (1 + N, D), of which the first is the class token's."""
    return {"class_token": token + positions[0], "positions.weight": grid_positions(positions[1:])}


def embedding_rows(embedding: Tensor, vocab_size: int) -> Tensor:
    """Embeddings (V', D) for a tokenizer of `vocab_size` ids.

    The tokenizer may have a few more special tokens (their rows are zero), the model a few unused rows.

    Raises:
        ValueError: the sizes differ too much to be of the same vocabulary.
    """
    surplus = len(embedding) - vocab_size
    if not -64 <= surplus <= 1024:
        raise ValueError(
            f"its tokenizer has {vocab_size} tokens, its text encoder knows {len(embedding)}: they do not belong "
            f"together. Put the tokenizer files of this model beside its weights."
        )
    if surplus >= 0:
        return embedding[:vocab_size].clone()
    return torch.cat([embedding, embedding.new_zeros(-surplus, embedding.shape[1])])
