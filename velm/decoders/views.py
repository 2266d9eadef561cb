"""What the positions of a language model see, and how it reaches the attention of transformers' models.

`Sequence` is one tensor of keys, `velm.decoders.packed.PackedTexts` one with several texts behind a prefix, and
`velm.decoders.shared_prefix.SharedStep` has keys that several rows share. transformers
hands keyword arguments of a model through to its attention function: a model that `show_views` has prepared takes
`view=...` and attends as the view says, windows included; without one it attends as before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velm.layers.attention import cast_for_autocast, matmul_attention, matmul_is_faster

__all__ = ["Sequence", "View", "attend", "show_views"]

_NAME = "velm_view"


class View(Protocol):
    """The keys that T new positions of each of R rows see.

    Attributes:
        total: positions that the last one may see, those before included.
        places: int64 (R or 1, T), the number of each new position among those that hold content.
    """

    @property
    def total(self) -> int: ...

    @property
    def places(self) -> Tensor: ...

    def mask(self, window: int | None = None) -> Tensor | None:
        """bool (R or 1, T, total), True where a position is seen; None: each sees itself and all before it.

        Args:
            window: number of positions that are seen, itself included; None: no limit.
        """

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, dropout: float
    ) -> Tensor:
        """Attention of query float (R, H, T, d) over key and value float (R, H_kv, n, d): float (R, T, H, d).

        Args:
            module: the attention module of transformers.
            scaling: factor of the scores.
            window: as of `mask`.
            dropout: probability of dropping a weight.
        """


@dataclass(frozen=True)
class Sequence:
    """T positions behind `past` others, whose keys and values stand in one tensor with theirs.

    Attributes:
        total: past + T.
        past: positions before.
        device: of the masks.
        both: positions at the beginning that see each other in both directions.
        content: bool (R, n), n <= total, True on content of the first n positions; None: all.
        first: position from which on hidden states are asked for; those before are read by others alone.
    """

    total: int
    past: int
    device: torch.device
    both: int = 0
    content: Tensor | None = None
    first: int = 0
    _seen: dict[int | None, Tensor] = field(default_factory=dict, repr=False)

    @property
    def places(self) -> Tensor:
        return self._places()[:, self.past :]

    def _content(self) -> Tensor | None:
        if self.content is None:
            return None
        return F.pad(self.content, (0, self.total - self.content.shape[1]), value=True)

    def _places(self) -> Tensor:
        content = self._content()
        if content is None:
            return torch.arange(self.total, device=self.device)[None]
        return (content.cumsum(dim=1) - 1).clamp(min=0)

    def mask(self, window: int | None = None) -> Tensor | None:
        limited = window is not None and window < self.total
        simple = self.total - self.past == 1 or self.past == self.both == 0
        if simple and self.content is None and not limited:
            return None
        if window not in self._seen:
            self._seen[window] = self.seen(window)
        return self._seen[window]

    def seen(self, window: int | None = None) -> Tensor:
        """`mask`, also where none is needed."""
        seen = self._causal()
        itself = seen.triu(self.past)  # padding, too: a softmax over nothing is NaN
        seen[: self.both, : self.both] = True
        content = self._content()
        seen = seen[None] if content is None else seen & content[:, None]
        if window is not None:
            places = self._places()
            seen = seen & (places[:, None] > places[:, self.past :, None] - window)
        return seen | itself

    def seen_by_last(self, window: int | None = None) -> Tensor:
        """The rows of `seen` from `first` on."""
        mask = self.mask(window)
        return (self.seen(window) if mask is None else mask)[:, self.first :]

    def _causal(self) -> Tensor:
        """bool (T, total), what is seen in one direction if all is content; nothing above the diagonal."""
        return torch.ones(self.total - self.past, self.total, dtype=torch.bool, device=self.device).tril(self.past)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, dropout: float
    ) -> Tensor:
        return attend(module, query, key, value, self.mask(window), scaling, dropout)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    """As `View.attend`, of the keys that `mask` shows, bool (R or 1, T, n); None: as many as queries, causally."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.shape[2] == 1 and not torch.is_grad_enabled():
        return _one_position(query, key, value, mask, scaling)
    mask = None if mask is None else mask[:, None]
    if matmul_is_faster(query, key):
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": mask is None, "dropout_p": dropout}
        return matmul_attention(query, key, value, scale=scaling, **options).transpose(1, 2).contiguous()
    attended: Tensor = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=True
    )[0]
    return attended


def _one_position(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of one position, float (R, H, 1, d), without dropout, as of `View.attend`.

    Heads that share a key are positions of one head to the kernel, which then reads each key once: it takes a fifth of
    the time of `enable_gqa` in bfloat16 on a CPU (`python -m benchmarks llm_generate`).
    """
    grouped = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # (R, H_kv, H / H_kv, d)
    mask = None if mask is None else mask[:, None]
    attended = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return attended.flatten(1, 2)[:, None]


def show_views(model: Any) -> bool:
    """Let the attention of a model of transformers take a `view`; False: this model's cannot.

    Registers an attention function by transformers' `AttentionInterface`. Models whose attention has more than scores,
    a mask and a softmax (soft caps, sinks, biases by distance) are left as they are.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    if (
        not getattr(model, "_supports_attention_backend", False)
        or config._attn_implementation != "sdpa"
        or getattr(config, "attn_logit_softcapping", None) is not None
        or not kinds <= {"full_attention", "sliding_attention"}
    ):
        return False
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    if _hands_through(model):
        return True
    model.set_attn_implementation("sdpa")
    return False


class _Counter:
    """A view of one position that counts the layers that go by it."""

    total, count = 1, 0

    def __init__(self, device: torch.device) -> None:
        self.places = torch.zeros(1, 1, dtype=torch.long, device=device)

    def mask(self, window: int | None = None) -> None:
        return None

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, *options: Any) -> Tensor:
        self.count += 1
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2)


@torch.no_grad()
def _hands_through(model: Any) -> bool:
    """Whether every block hands the view through to its attention: Nemotron's do not."""
    embedding = model.get_input_embeddings()
    if embedding.weight.is_meta:
        return True
    counter, training = _Counter(embedding.weight.device), model.training
    model.eval()
    model(inputs_embeds=embedding(counter.places), position_ids=counter.places, use_cache=False, view=counter)
    model.train(training)
    return counter.count == model.config.num_hidden_layers


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    view: View | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: sdpa, or what the view says."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if view is None:
        attended: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )[0]
        return attended, None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # rotary positions and norms of queries return float32 under autocast: cast them before `matmul_is_faster` is asked
    query, key, value = (cast_for_autocast(x) for x in (query, key, value))
    return view.attend(module, query, key, value, scaling, sliding_window, dropout), None
