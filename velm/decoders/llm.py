"""Causal language models of transformers as decoders that read the memory as a prefix of vectors."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from velm.decoders.cache import cache_option
from velm.decoders.last_block import shorten_last_block
from velm.decoders.prefix import PrefixDecoder
from velm.decoders.projector import Projector, ProjectorName, initial_norm
from velm.decoders.recorded_view import RecordedView
from velm.decoders.views import Sequence, View, show_views
from velm.decoders.vocabulary import check_vocabulary
from velm.errors import ConfigError
from velm.layers.rms_norm import replace_rms_norms
from velm.pretrained import hub
from velm.pretrained.freezing import FrozenPartsInEval
from velm.prompt import Prompt

_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # logits that are no product of hidden states


class LLMDecoder(FrozenPartsInEval, PrefixDecoder):
    """Llama, Qwen, SmolLM, Gemma, GPT-2 and other causal language models behind the image (ClipCap, LLaVA, PaliGemma).

    The memory, projected, stands before the words: there are no placeholder tokens. The model's cross-attention, if it
    has any, is not used.

    Args:
        model_name: a hub id, a folder or a GGUF file in one ('folder/model.gguf'), or with `config` a model type such
            as 'llama', 'qwen2', 'gpt2', 'gemma3_text'; the part after 'llm/'.
        vocab_size: of the tokenizer; set by the builder. Pretrained weights need their own tokenizer, to which a few
            special tokens may have been added (their rows are random).
        memory_dim: width of the memory; set by the builder.
        pad_id: of the tokenizer; set by the builder.
        gguf_file: name of a GGUF file in the folder or the hub id `model_name`, which transformers reads into float32.
        config: hyper-parameters named as in the model's config.json: random weights, nothing is downloaded.
        pretrained: load the weights; null: yes, unless there is a config.
        projector: linear, affine, mlp or resampler, see `velm.decoders.projector.Projector`.
        shuffle: side of the squares of neighbouring positions that are joined into one, for a shorter prefix.
        prefix_tokens: vectors of the resampler.
        prefix_norm: norm of the prefix's vectors at the start: a number, or 'match' for the median norm of the word
            vectors. null: as the projector makes them; a resampler's are then sqrt(width). A run says at step 0 where
            the two are ten times apart.
        prefix_attention: 'causal', or 'bidirectional': positions of the image see each other (PaliGemma, GIT).
        trainable: 'all', or 'projector': the language model is frozen and in eval mode. The last blocks alone are
            `model.train_last: {decoder: 2}`, adapters `model.adapt: {decoder: lora}`.
        template: what is read around the image before the answer is written (see `velm.data.text.template`): a text
            such as 'Question: {text} Answer:', or 'chat', the tokenizer's own; null: no text is read, and a caption is
            written from bos on.

    Raises:
        ValueError: there is no such model, or its logits are more than a product of hidden states.
    """

    library_parts = ("model", "output_projection")

    def __init__(
        self,
        *,
        model_name: str,
        vocab_size: int,
        memory_dim: int,
        pad_id: int = 0,
        gguf_file: str | None = None,
        config: dict[str, Any] | None = None,
        pretrained: bool | None = None,
        projector: ProjectorName = "mlp",
        shuffle: int = 1,
        prefix_tokens: int = 32,
        prefix_norm: Literal["match"] | float | None = None,
        prefix_attention: Literal["causal", "bidirectional"] = "causal",
        trainable: Literal["all", "projector"] = "all",
        template: str | None = None,
    ) -> None:
        super().__init__()
        self.template = template
        if trainable not in ("all", "projector"):
            raise ValueError(
                f"trainable is 'all' or 'projector'; got {trainable!r}. Adapters are model.adapt: {{decoder: lora}}, "
                f"the last two blocks model.train_last: {{decoder: 2}}."
            )
        if prefix_attention not in ("causal", "bidirectional"):
            raise ValueError(f"prefix_attention is 'causal' or 'bidirectional'; got {prefix_attention!r}.")
        model_name = model_name if gguf_file is None else f"{model_name}/{gguf_file}"
        pretrained = hub.resolve_pretrained(model_name, config, pretrained)
        given = None if config is None else {**hub.token_ids(vocab_size, pad_id), **config}
        language = hub.read_config(model_name, given)
        language = getattr(language, "text_config", language)
        if config is not None:
            check_vocabulary(f"llm/{model_name}", language.vocab_size, vocab_size, start_id=0)
        whole = hub.build(_class_of(language, model_name), language, model_name, pretrained)
        if config is None:
            hub.fit_vocabulary(whole, language, vocab_size, model_name, exact=True)
        self.output_projection = _output_of(whole, model_name)
        self.model = whole.base_model
        replace_rms_norms(self.model)
        self.embedding = [self.model.get_input_embeddings()]  # a list: the weights are registered once, with the model
        width = int(self.embedding[0].embedding_dim)
        norm = initial_norm(prefix_norm, self.embedding[0])
        self.projector = Projector(projector, memory_dim, width, shuffle=shuffle, queries=prefix_tokens, norm=norm)
        self.bidirectional = prefix_attention == "bidirectional"
        self.counts_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        self.cache_option = cache_option(self.model)
        self.takes_views = self.counts_positions and show_views(self.model)
        if self.takes_views:
            shorten_last_block(self.model)
        self.places = getattr(language, "max_position_embeddings", None)
        hub.freeze(self.model, trainable == "all")
        self.output_projection.requires_grad_(trainable == "all")
        self.portable_config: dict[str, Any] = {"config": hub.portable_config(language), "pretrained": False}
        self.train(self.training)

    def embed_prefix(self, memory: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.projector(memory, mask)

    def embed_tokens(self, tokens: Tensor, past: int) -> Tensor:
        unknown = tokens >= self.embedding[0].num_embeddings  # pad, bos and unk that the tokenizer added
        return self.embedding[0](tokens.masked_fill(unknown, 0))

    @torch.no_grad()
    def attend(
        self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None, prompt: Prompt | None = None
    ) -> Tensor | None:
        """As of `Decoder`: a mean over heads and layers, see `RecordedView`."""
        if not self.takes_views or (prompt is None) != (self.template is None):
            return None
        image, mask = self.embed_prefix(memory, memory_mask)
        prefix, first = image, 0
        if prompt is not None:
            (prefix, mask), first = self.read_prompt(memory, memory_mask, prompt), prompt.before.shape[1]
        x, view = self._whole(tokens, prefix, mask)
        record = RecordedView(view, slice(first, first + image.shape[1]))
        self.run(x, record, None)
        weights = self._predicting(record.effect(), prefix.shape[1], mask)
        weights = self.projector.spread(weights, memory, memory_mask)
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)

    def run(self, x: Tensor, view: View, cache: Any) -> Tensor:
        if self.places is not None and view.total > self.places:
            raise ConfigError(
                f"The image and the text take {view.total} positions, and {type(self.model).__name__} holds "
                f"{self.places}. Join positions of the image (decoder.shuffle, prefix_tokens), or shorten the texts "
                f"(data.max_length)."
            )
        options: dict[str, Any] = {self.cache_option: cache, "use_cache": cache is not None}
        if self.counts_positions:
            options["position_ids"] = view.places.expand(len(x), -1)
        if self.takes_views:
            options["view"] = view
        else:
            assert isinstance(view, Sequence)
            options["attention_mask"] = _masks(self.model.config, x, view)
        return self.model(inputs_embeds=x, **options).last_hidden_state


def _masks(config: Any, x: Tensor, view: Sequence) -> Any:
    """What a model whose attention takes no view reads as its mask: one, or one for each kind of layer."""

    def added(window: int | None) -> Tensor:
        seen = view.seen(window)
        return x.new_zeros(len(x), *seen.shape[1:]).masked_fill(~seen, torch.finfo(x.dtype).min)[:, None]

    windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds & set(windows)) == 2:
        return {kind: added(windows[kind]) for kind in kinds}
    return x.new_ones(len(x), view.total, dtype=torch.long) if view.mask() is None else added(None)


def _class_of(config: Any, model_name: str) -> Any:
    import transformers

    cls = hub.model_class(config, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)
    if cls is None:
        raise ValueError(
            f"llm/{model_name} is a {config.model_type!r} model, and transformers has no causal language model of this "
            f"type. Among those that it has: llama, qwen2, qwen3, gemma3_text, smollm3, gpt2, phi3, olmo2."
        )
    if getattr(cls, "_is_stateful", False):
        raise ValueError(
            f"llm/{model_name} has recurrent layers ({cls.__name__}), whose states beams cannot share and select. Take "
            f"a model whose layers are all attention, such as llama, qwen3, gemma3_text, smollm3 or gpt2."
        )
    scaled = next((name for name in _SCALED if getattr(config, name, None) not in (None, 1, 1.0)), None)
    if scaled is not None:
        raise ValueError(
            f"The logits of llm/{model_name} are changed after the output projection ({scaled} = "
            f"{getattr(config, scaled)}), which VELM's losses and search do not do. Take another model."
        )
    return cls


def _output_of(model: Any, model_name: str) -> nn.Linear:
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise ValueError(f"llm/{model_name}: {type(model).__name__} has no linear output projection.")
    return output
