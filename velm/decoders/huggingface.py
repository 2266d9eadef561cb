"""Language models of transformers with cross-attention as decoders: GPT-2, BERT, RoBERTa, BLIP's text decoder ..."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from velm.decoders.base import Decoder, DecoderState
from velm.decoders.cache import cache_option, fork
from velm.decoders.vocabulary import check_vocabulary, own_ids
from velm.errors import ConfigError
from velm.pretrained import hub
from velm.pretrained.freezing import FrozenPartsInEval

_CROSS = ("cross", "encoder_attn", "q_attn")  # weights that a plain language model lacks
_UNLISTED = {"blip_text_model": "BlipTextLMHeadModel"}  # not in transformers' mapping of causal language models


@dataclass
class HFDecoderState(DecoderState):
    """Keys and values of the tokens so far and of the memory.

    Attributes:
        cache: transformers' EncoderDecoderCache; never changed in place.
        memory: float (B, N, D'), projected.
        memory_mask: int64 (B, N) or None.
        length: tokens fed so far.
        owners: int64 (B,), index of the memory that each row attends over.
    """

    cache: Any
    memory: Tensor
    memory_mask: Tensor | None
    length: int
    owners: Tensor

    def select(self, rows: Tensor) -> HFDecoderState:
        """Each beam holds a copy of its memory; reordering beams within an image does not copy it again."""
        owners = self.owners.index_select(0, rows)
        if torch.equal(owners, self.owners):
            cache = _fork(self.cache, rows, same_memory=True)
            return HFDecoderState(cache, self.memory, self.memory_mask, self.length, owners)
        mask = None if self.memory_mask is None else self.memory_mask.index_select(0, rows)
        memory = self.memory.index_select(0, rows)
        return HFDecoderState(_fork(self.cache, rows), memory, mask, self.length, owners)


class HFDecoder(FrozenPartsInEval, Decoder):
    """A causal language model of transformers that attends over a memory.

    Pretrained weights may lack cross-attention, which is then initialised at random; all others must be present.

    Args:
        model_name: a hub id or a folder, or with `config` a model type such as 'gpt2', 'bert', 'roberta'; the part
            after 'hf/'.
        vocab_size: of the tokenizer; set by the builder. Pretrained weights need their own tokenizer, to which a few
            special tokens may have been added (their rows are random).
        memory_dim: width of the memory; set by the builder. Projected linearly to the model's width if they differ.
        pad_id: of the tokenizer; set by the builder.
        config: hyper-parameters named as in the model's config.json: random weights, nothing is downloaded.
        pretrained: load the weights; null: yes, unless there is a config.
        trainable: 'all', or 'cross': only cross-attention and the projection of the memory.
        start_id: the model's own token in place of bos (BLIP's [DEC]); the vocabulary is then the config's, see
            `velm.decoders.vocabulary`. null: bos, and the vocabulary is the tokenizer's.
    """

    library_parts, new_weights = ("model", "output_projection"), _CROSS

    def __init__(
        self,
        *,
        model_name: str,
        vocab_size: int,
        memory_dim: int,
        pad_id: int = 0,
        config: dict[str, Any] | None = None,
        pretrained: bool | None = None,
        trainable: Literal["all", "cross"] = "all",
        start_id: int | None = None,
    ) -> None:
        super().__init__()
        self.start_id = start_id
        pretrained = hub.resolve_pretrained(model_name, config, pretrained)
        decoding = {"is_decoder": True, "add_cross_attention": True}
        options = None if config is None else {**hub.token_ids(vocab_size, pad_id), **config}
        language = hub.read_config(model_name, options, decoding)
        cls = _class_of(language, model_name)
        if config is not None or start_id is not None:
            check_vocabulary(f"hf/{model_name}", language.vocab_size, vocab_size, start_id)
        model = hub.build(cls, language, model_name, pretrained, new_parts=_CROSS)
        if config is None and start_id is None:
            hub.fit_vocabulary(model, language, vocab_size, model_name, exact=True)
        self.output_projection = _take_output(model)
        self.model = model
        width = _memory_width(language)
        self.memory_projection = nn.Identity() if memory_dim == width else nn.Linear(memory_dim, width)
        self.offset = _position_offset(model)
        self.counts_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        self.cache_option = cache_option(model)
        places = getattr(language, "max_position_embeddings", None)
        self.max_length = None if places is None else int(places) - self.offset
        if trainable == "cross":
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(any(part in name for part in _CROSS))
            self.output_projection.requires_grad_(False)
        elif trainable != "all":
            raise ValueError(f"trainable is 'all' or 'cross'; got {trainable!r}.")
        self.portable_config: dict[str, Any] = {"config": hub.portable_config(language), "pretrained": False}
        self.train(self.training)

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        return self._run(tokens, self.memory_projection(memory), self._long(memory_mask), None, 0)

    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> HFDecoderState:
        from transformers import DynamicCache, EncoderDecoderCache

        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        mask = self._long(memory_mask)
        owners = torch.arange(len(memory), device=memory.device)
        return HFDecoderState(cache, self.memory_projection(memory), mask, 0, owners)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, HFDecoderState]:
        assert isinstance(state, HFDecoderState)
        cache = _fork(state.cache)
        hidden = self._run(token[:, None], state.memory, state.memory_mask, cache, state.length)
        after = HFDecoderState(cache, state.memory, state.memory_mask, state.length + 1, state.owners)
        return self.output_projection(hidden[:, -1]), after

    def _long(self, memory_mask: Tensor | None) -> Tensor | None:
        if memory_mask is not None and self.model.config.model_type in _UNLISTED:
            raise ConfigError(
                f"{type(self.model).__name__} of transformers reads all of its memory, padding included: leave text "
                f"out of model.memory, or take another decoder."
            )
        return None if memory_mask is None else memory_mask.long()

    def _run(self, tokens: Tensor, memory: Tensor, mask: Tensor | None, cache: Any, past: int) -> Tensor:
        if self.max_length is not None and past + tokens.shape[1] > self.max_length:
            raise ConfigError(
                f"{past + tokens.shape[1]} tokens, but {type(self.model).__name__} holds {self.max_length}. "
                f"Shorten the captions (data.max_length), or raise max_position_embeddings in its config."
            )
        total = past + tokens.shape[1]
        tokens = own_ids(tokens, self.start_id, self.output_projection.out_features, past)
        options: dict[str, Any] = {self.cache_option: cache}
        if self.counts_positions:
            places = torch.arange(past, total, device=tokens.device) + self.offset
            options["position_ids"] = places.expand(len(tokens), -1)
        output = self.model(
            input_ids=tokens,
            attention_mask=tokens.new_ones(len(tokens), total),  # padding is at the end, where the causal mask hides it
            encoder_hidden_states=memory.contiguous(),  # some models call .view on it
            encoder_attention_mask=mask,
            use_cache=cache is not None,
            **options,
        )
        return output.logits  # hidden states: the output projection was removed


def _memory_width(config: Any) -> int:
    """The width of the memory that cross-attention takes."""
    names = ("encoder_hidden_size", "cross_attention_hidden_size", "hidden_size")  # BLIP's, TrOCR's, all others'
    return int(next(value for name in names if (value := getattr(config, name, None)) is not None))


def _class_of(config: Any, model_name: str) -> Any:
    import transformers

    cls = hub.model_class(config, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
    cls = cls or getattr(transformers, _UNLISTED.get(config.model_type, ""), None)
    if cls is None or "encoder_hidden_states" not in inspect.signature(cls.forward).parameters:
        raise ValueError(
            f"hf/{model_name} is a {config.model_type!r} model, which has no language model with cross-attention over "
            f"a memory. Among those that have: gpt2, bert, roberta, electra, xlm-roberta, bert-generation, bart, trocr."
        )
    return cls


def _take_output(model: Any) -> nn.Linear:
    """Remove the output projection from `model`, which then returns hidden states."""
    output = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is output), None)
    if name is None or not isinstance(output, nn.Linear):
        raise ValueError(f"{type(model).__name__} has no linear output projection, so it cannot be a decoder.")
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return output


def _position_offset(model: Any) -> int:
    """Index of the first position: RoBERTa's is pad id + 1."""
    embeddings = getattr(model.base_model, "embeddings", None)
    if not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return 0
    return int(getattr(embeddings, "padding_idx", -1)) + 1


def _fork(cache: Any, rows: Tensor | None = None, same_memory: bool = False) -> Any:
    """An independent copy of an EncoderDecoderCache, with `rows` of it; tensors are shared where possible.

    `same_memory`: the memories of the rows are unchanged.
    """
    from transformers import EncoderDecoderCache

    of_memory = None if same_memory else rows
    copied = EncoderDecoderCache(fork(cache.self_attention_cache, rows), fork(cache.cross_attention_cache, of_memory))
    copied.is_updated = dict(cache.is_updated)
    return copied
