"""Vision and text models of transformers as encoders: CLIP, SigLIP, DINOv2, ViT; BERT, RoBERTa, CLIP's text ..."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm.encoders.base import ImageEncoder, TextEncoder, three_channels
from velm.errors import ConfigError
from velm.layers.pooling import Pooling
from velm.outputs import EncoderOutput
from velm.pretrained import hub
from velm.pretrained.freezing import FrozenPartsInEval, trace_shapes

_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
_NORMALISATION = {"clip": _CLIP, "siglip": _HALF, "siglip2": _HALF, "vit": _HALF, "beit": _HALF}  # others: ImageNet's


class HFImageEncoder(FrozenPartsInEval, ImageEncoder):
    """A vision model of transformers; of a model with two towers, its vision tower.

    Class and register tokens are not part of the features, unless `class_in_features` is set. For images of another
    size than the model's own, its position embeddings are interpolated.

    Args:
        model_name: a hub id or a folder, or with `config` a model type such as 'vit', 'clip_vision_model',
            'siglip_vision_model', 'dinov2'; the part after 'hf/'.
        config: hyper-parameters named as in the model's config.json: random weights, nothing is downloaded.
        pretrained: load the weights; null: yes, unless there is a config.
        trainable: false freezes the model; projection and attention pooling are still trained.
        dim: width D of a linear projection of the features; null: no projection, the model's own width.
        pooling: 'own' as the model does it (class token, attention head), or the mean if it has none;
            or 'mean', 'max', 'attention' over the positions; or 'pooler', the model's pooling layer over its class
            token, which 'own' leaves out (ViT in a VisionTextDualEncoder).
        class_in_features: begin the features with the class token and what else precedes the positions, as
            transformers' captioners read them; there is no grid then, so no attention maps.
        feature_layer: number of the block whose output the features are, without the model's last norm, as LLaVA reads
            them; the pooled vector is their class token or mean. null: the model's output.
        image_mean: of the pixels' three channels, in [0, 1]; null: the model's own.
        image_std: likewise.
    """

    def __init__(
        self,
        *,
        model_name: str,
        config: dict[str, Any] | None = None,
        pretrained: bool | None = None,
        trainable: bool = True,
        dim: int | None = None,
        pooling: Literal["own", "mean", "max", "attention", "pooler"] = "own",
        class_in_features: bool = False,
        feature_layer: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        pretrained = hub.resolve_pretrained(model_name, config, pretrained)
        vision = hub.read_config(model_name, config)
        vision = getattr(vision, "vision_config", vision)
        cls = hub.model_class(vision)
        if cls is None or getattr(cls, "main_input_name", "") != "pixel_values":
            raise ValueError(f"hf/{model_name} is a {vision.model_type!r} model, which takes no images.")
        _check_dim(dim)
        self.model = hub.build(cls, vision, model_name, pretrained, pooler=pooling == "pooler")
        self.class_in_features, self.feature_layer = class_in_features, feature_layer
        if feature_layer is not None and not 0 < feature_layer <= getattr(vision, "num_hidden_layers", 0):
            raise ValueError(
                f"feature_layer is the number of a block, 1 to {getattr(vision, 'num_hidden_layers', 0)} of "
                f"hf/{model_name}; got {feature_layer}."
            )
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        own = hub.image_normalisation(model_name) if config is None else None
        mean, std = own or _NORMALISATION.get(vision.model_type.split("_")[0]) or (self.image_mean, self.image_std)
        self.image_mean, self.image_std = three_channels(image_mean, mean), three_channels(image_std, std)
        self.own_pooling, self.needs_pooler = pooling in ("own", "pooler"), pooling == "pooler"
        size = _pair(getattr(vision, "image_size", 224))
        (positions, _), used = trace_shapes(self.model, lambda images: self._run(images)[:2], (1, 3, *size))
        width = positions.shape[-1]
        self.dim = width if dim is None else dim
        self.projection = nn.Identity() if dim is None else nn.Linear(width, dim)
        self.pooling = None if self.own_pooling else Pooling(pooling, self.dim)  # type: ignore[arg-type]
        self.used_parameters = {f"model.{name}" for name in used}
        hub.freeze(self.model, trainable, used)
        self.portable_config: dict[str, Any] = {
            "config": hub.portable_config(vision),
            "pretrained": False,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }
        self.train(self.training)

    def forward(self, images: Tensor) -> EncoderOutput:
        positions, pooled, grid = self._run(images)
        features = self.projection(positions)
        pooled = self.projection(pooled) if self.pooling is None else self.pooling(features)
        return EncoderOutput(features, pooled, grid=grid)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int] | None]:
        """Positions (B, N, width), the model's own pooled vector (B, width) or None, and the grid if there is one."""
        size = (images.shape[2], images.shape[3])
        resized = self.interpolates and size != _pair(getattr(self.model.config, "image_size", size))
        options = {"interpolate_pos_encoding": True} if resized else {}
        if self.feature_layer is None:
            output = self.model(pixel_values=images, **options)
            raw, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
        else:
            output = self.model(pixel_values=images, output_hidden_states=True, **options)
            raw, pooled = output.hidden_states[self.feature_layer], None
        if raw.dim() == 4:  # a convolutional model
            grid = (raw.shape[2], raw.shape[3])
            positions, tokens = raw.flatten(2).transpose(1, 2), 0
        else:
            grid, tokens = _grid(size, getattr(self.model.config, "patch_size", None), raw.shape[1])
            positions = raw[:, tokens:]
        if pooled is None and self.needs_pooler:
            raise ValueError(f"{type(self.model).__name__} has no pooling layer; pool it by own, mean or attention.")
        if not self.own_pooling:
            pooled = None
        elif pooled is not None:
            pooled = pooled.flatten(1)
        else:
            pooled = raw[:, 0] if tokens else positions.mean(dim=1)
        return (raw, pooled, None) if self.class_in_features and tokens else (positions, pooled, grid)


class HFTextEncoder(FrozenPartsInEval, TextEncoder):
    """A text model of transformers; of a model with two towers, its text tower; of an encoder-decoder, its encoder.

    Args:
        model_name: a hub id or a folder, or with `config` a model type such as 'bert', 'roberta', 'distilbert',
            'clip_text_model'; the part after 'hf/'.
        vocab_size: of the tokenizer; set by the builder. Pretrained weights need their own tokenizer, to which a few
            special tokens may have been added (their rows are random).
        pad_id: of the tokenizer; set by the builder.
        config: hyper-parameters named as in the model's config.json: random weights, nothing is downloaded.
        pretrained: load the weights; null: yes, unless there is a config.
        trainable: false freezes the model; the projection is still trained.
        dim: width D of a linear projection of the features; null: no projection, the model's own width.
        pooling: 'first' (bos), 'mean', or 'last' (eos), or 'pooler', the model's pooling layer (BERT's linear map and
            tanh of bos); null: last for models that read from left to right and for the text towers of CLIP and
            SigLIP, first for masked ones (BERT), mean for the others.
        reads_bos: false leaves bos out, as T5 does; SigLIP's texts never have one.
        fill_id: token that SigLIP's texts are filled with, over which it attends as over content; null: the tokenizer's
            padding token if the model knows it, else the model's own.
        bos_id: token that is read in place of bos, such as NLLB's code of a language; null: the tokenizer's bos.
    """

    library_parts = ("model", "head")

    def __init__(
        self,
        *,
        model_name: str,
        vocab_size: int,
        pad_id: int = 0,
        config: dict[str, Any] | None = None,
        pretrained: bool | None = None,
        trainable: bool = True,
        dim: int | None = None,
        pooling: Literal["first", "mean", "last", "pooler"] | None = None,
        reads_bos: bool = True,
        bos_id: int | None = None,
        fill_id: int | None = None,
    ) -> None:
        super().__init__()
        pretrained = hub.resolve_pretrained(model_name, config, pretrained)
        ids = hub.token_ids(vocab_size, pad_id)
        text = hub.read_config(model_name, None if config is None else _text_config(ids, config))
        text = getattr(text, "text_config", text)
        cls = hub.model_class(text)
        if cls is None or getattr(cls, "main_input_name", "") != "input_ids":
            raise ValueError(f"hf/{model_name} is a {text.model_type!r} model, which takes no tokens.")
        if config is not None and text.vocab_size < vocab_size:
            raise ValueError(
                f"The config of hf/{model_name} has vocab_size {text.vocab_size}, the tokenizer {vocab_size} tokens. "
                f"Leave vocab_size out of the config: the tokenizer's is taken."
            )
        _check_dim(dim)
        siglip = text.model_type.startswith("siglip")
        if fill_id is None and siglip:
            fill_id = pad_id if pad_id < text.vocab_size else text.pad_token_id
        model = hub.build(cls, text, model_name, pretrained, pooler=pooling == "pooler")
        if pooling == "pooler" and getattr(model, "pooler", None) is None:
            raise ValueError(f"{type(model).__name__} has no pooling layer; pool it by first, mean or last.")
        if config is None:
            hub.fit_vocabulary(model, text, vocab_size, model_name)
        self.model = model.get_encoder() if getattr(text, "is_encoder_decoder", False) else model
        width = int(getattr(text, "project_dim", text.hidden_size))  # AltCLIP projects its positions
        self.dim = width if dim is None else dim
        self.projection = nn.Identity() if dim is None else nn.Linear(width, dim)
        self.own_pooling = pooling == "pooler"
        self.pooling = Pooling("first" if self.own_pooling else pooling or _text_pooling(text), self.dim)  # type: ignore[arg-type]
        # SigLIP's own head behind its pooling; only as the model pools itself.
        self.head: nn.Module = nn.Identity()
        hub.freeze(self.model, trainable)
        self.fixed_length = int(text.max_position_embeddings) if siglip else None
        self.pads = not siglip
        self.fill_id = fill_id or 0
        if siglip:
            self._take_head(pooling is None)
        self.reads_bos, self.bos_id = reads_bos and not siglip, bos_id
        self.padding_idx = _padding_idx(self.model)
        positions = getattr(text, "max_position_embeddings", None)
        offset = 0 if self.padding_idx is None else self.padding_idx + 1
        self.max_length = None if positions is None else int(positions) - offset + (0 if self.reads_bos else 1)
        self.portable_config: dict[str, Any] = {"config": hub.portable_config(text), "pretrained": False}
        if siglip:
            self.portable_config["fill_id"] = fill_id
        self.train(self.training)

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        if self.max_length is not None and tokens.shape[1] > self.max_length:
            raise ConfigError(
                f"{tokens.shape[1]} tokens, but {type(self.model).__name__} holds {self.max_length}. Shorten the "
                f"texts (data.max_length), or raise max_position_embeddings in its config."
            )
        if self.fixed_length is not None:
            return self._encode_filled(tokens, mask, self.fixed_length)
        if not self.reads_bos:
            tokens, mask = tokens[:, 1:], mask[:, 1:]
        elif self.bos_id is not None:
            tokens = torch.cat([torch.full_like(tokens[:, :1], self.bos_id), tokens[:, 1:]], dim=1)
        options = {}
        if self.padding_idx is not None:  # RoBERTa counts positions from its own pad id, and finds padding by it
            options["position_ids"] = self.padding_idx + mask.long().cumsum(dim=1) * mask
        output = self.model(input_ids=tokens, attention_mask=mask.long(), **options)
        raw = output.last_hidden_state
        features = self.projection(raw)
        if self.own_pooling:
            return EncoderOutput(features, self.projection(output.pooler_output), mask=mask)
        pooled = self.pooling(features if isinstance(self.head, nn.Identity) else raw, mask)
        if not isinstance(self.head, nn.Identity):
            pooled = self.projection(self.head(pooled))
        return EncoderOutput(features, pooled, mask=mask)

    def _encode_filled(self, tokens: Tensor, mask: Tensor, full: int) -> EncoderOutput:
        """SigLIP: every text is filled to its full length without a mask, and pooled at the last position.

        There is no bos, so its position has the zero vector.
        """
        words = tokens[:, 1:].masked_fill(~mask[:, 1:], self.fill_id)
        filled = F.pad(words, (0, full - words.shape[1]), value=self.fill_id)
        raw = self.model(input_ids=filled).last_hidden_state
        features = F.pad(self.projection(raw[:, : words.shape[1]]), (0, 0, 1, 0))
        if isinstance(self.head, nn.Identity):
            return EncoderOutput(features, self.pooling(features, mask), mask=mask)
        return EncoderOutput(features, self.projection(self.head(raw[:, -1])), mask=mask)

    def _take_head(self, use: bool) -> None:
        head = getattr(self.model, "head", None)
        if head is not None and use:
            self.head = head
            self.model.head = nn.Identity()
        elif head is not None:
            self.model.head = nn.Identity()


def _check_dim(dim: int | None) -> None:
    if dim is not None and dim < 1:
        raise ValueError(f"dim is the width of the projected features, at least 1; got {dim}.")


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _grid(size: tuple[int, int], patch: Any, count: int) -> tuple[tuple[int, int], int]:
    """The grid of `count` tokens of an image of `size` pixels, and the number of prefix tokens."""
    if patch is not None:
        patch = _pair(patch)
        rows, columns = size[0] // patch[0], size[1] // patch[1]
        if rows * columns <= count < rows * columns + 64:
            return (rows, columns), count - rows * columns
    rows = max(1, round((count * size[0] / size[1]) ** 0.5))
    if count % rows != 0:
        raise ConfigError(f"{count} tokens of {size[0]} x {size[1]} pixels lie on no grid of that shape.")
    return (rows, count // rows), 0


def _text_config(ids: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Add the tokenizer's vocabulary size and special ids to the config, to its text tower if it has two."""
    tower = config.get("text_config")
    return {**config, "text_config": {**ids, **tower}} if isinstance(tower, dict) else {**ids, **config}


def _text_pooling(config: Any) -> Literal["first", "mean", "last"]:
    import transformers

    if config.model_type.startswith(("clip", "siglip")):
        return "last"
    if type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        return "first"
    return "last" if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING else "mean"


def _padding_idx(model: nn.Module) -> int | None:
    embeddings = getattr(getattr(model, "roberta", model), "embeddings", None)  # AltCLIP's wraps one
    if not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return None
    return int(getattr(embeddings, "padding_idx", 0))
