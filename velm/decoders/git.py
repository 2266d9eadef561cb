"""GIT's decoder (Wang et al. 2022, arXiv 2205.14100): one Transformer over image positions and text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velm.decoders.cache import cache_option
from velm.decoders.prefix import PrefixDecoder
from velm.decoders.views import View
from velm.decoders.vocabulary import check_vocabulary, own_ids
from velm.pretrained import hub
from velm.pretrained.freezing import FrozenPartsInEval


class GitDecoder(FrozenPartsInEval, PrefixDecoder):
    """The memory, projected and normalised, sees itself; the text sees it and its own past. Post-norm, as BERT.

    Args:
        vocab_size: of the tokenizer; set by the builder.
        memory_dim: width of the memory; set by the builder.
        pad_id: of the tokenizer; set by the builder.
        config: hyper-parameters of transformers' `GitConfig`; of its `vision_config` only `layer_norm_eps` counts.
        start_id: the model's own token in place of bos; the vocabulary is then the config's, see
            `velm.decoders.vocabulary`. null: bos, and the vocabulary is the tokenizer's.

    Raises:
        ValueError: a hyper-parameter is invalid, or the vocabularies differ.
    """

    library_parts = ("model", "output_projection")
    bidirectional = True

    def __init__(
        self,
        *,
        vocab_size: int,
        memory_dim: int,
        pad_id: int = 0,
        config: dict[str, Any] | None = None,
        start_id: int | None = None,
    ) -> None:
        super().__init__()
        import transformers

        given = {**hub.token_ids(vocab_size, pad_id), **(config or {})}
        eps = float((given.pop("vision_config", None) or {}).get("layer_norm_eps", 1e-5))
        language = hub.read_config("git", {**given, "model_type": "git", "vision_config": _no_images(memory_dim, eps)})
        check_vocabulary("git", language.vocab_size, vocab_size, start_id)
        whole = hub.build(transformers.GitForCausalLM, language, "git", pretrained=False)
        self.start_id = start_id
        self.output_projection = whole.output
        self.model = whole.git
        self.model.image_encoder = nn.Identity()
        self.max_length = int(language.max_position_embeddings)
        self.cache_option = cache_option(self.model.encoder)
        self.portable_config: dict[str, Any] = {
            "config": {**hub.portable_config(language), "vision_config": {"layer_norm_eps": eps}}
        }

    def embed_prefix(self, memory: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.model.visual_projection(memory), mask

    def embed_tokens(self, tokens: Tensor, past: int) -> Tensor:
        tokens = own_ids(tokens, self.start_id, self.output_projection.out_features, past)
        places = torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]  # the prefix has none
        return self.model.embeddings(input_ids=tokens, position_ids=places)

    def run(self, x: Tensor, view: View, cache: Any) -> Tensor:
        added, mask = None, view.mask()
        if mask is not None:
            added = x.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(x.dtype).min)[:, None]
        return self.model.encoder(x, attention_mask=added, **{self.cache_option: cache}).last_hidden_state


def _no_images(width: int, eps: float) -> dict[str, Any]:
    """The config of an image tower without blocks, which is built and removed."""
    return {
        "hidden_size": width, "num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 1,
        "image_size": 1, "patch_size": 1, "layer_norm_eps": eps,
    }  # fmt: skip
