"""`build_model`: which components a config needs, whether they fit together, and the model built from them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from velm import registry
from velm.errors import ConfigError
from velm.model.adapt import adapt
from velm.model.model import VisionLanguageModel, memory_width
from velm.outputs import aligns
from velm.util import did_you_mean

MODEL_KEYS = (
    "image_encoder", "text_encoder", "decoder", "embed_dim", "embed_dropout", "image_projection",
    "text_projection", "memory", "losses", "vocab_size", "pad_id", "plugins", "adapt",
)  # fmt: skip


def build_model(config: Mapping[str, Any]) -> VisionLanguageModel:
    """Build a model from the mapping that YAML holds, Python passes and a checkpoint stores.

    Args:
        config: `image_encoder`, `text_encoder`, `decoder` (configs or None), `embed_dim` (256), `embed_dropout` (0),
            `image_projection` and `text_projection` ('linear'), `memory` (['image']), `vocab_size`, `pad_id` (0),
            `plugins`, `adapt` (adapters by part); `losses`, where listed, decide which parts are built: one that no
            loss trains is left out, with a warning.

    Raises:
        ConfigError: an unknown key, or parts that do not fit together.
    """
    for key in config:
        if key not in MODEL_KEYS:
            guess = did_you_mean(key, MODEL_KEYS)
            raise ConfigError(f"The model has no option {key!r}.{guess} Its options: {', '.join(MODEL_KEYS)}.")
    registry.load_plugins(config.get("plugins") or ())
    memory = tuple(config.get("memory") or ("image",))
    configs = resolve_components(config, memory)
    context = {"pad_id": config.get("pad_id", 0)}
    if config.get("vocab_size") is not None:
        context["vocab_size"] = config["vocab_size"]
    image_config, text_config, decoder_config = configs["image_encoder"], configs["text_encoder"], configs["decoder"]
    encoders: dict[str, Any] = {}
    if image_config is not None:
        encoders["image"] = _build_encoder(registry.image_encoders, image_config, context)
    shared = shares_decoder(text_config)
    if text_config is not None and not shared:
        encoders["text"] = _build_encoder(registry.text_encoders, text_config, context)
    decoder = None
    if decoder_config is not None:
        widths = {source: encoders[source].dim for source in memory}
        width = memory_width(widths, _has_image_gate(decoder_config))
        decoder = registry.decoders.build(decoder_config, memory_dim=width, **context)
    if shared:
        require_shared_blocks(decoder, decoder_config, text_config)
        encoders["text"] = _build_encoder(registry.text_encoders, text_config, {**context, "decoder": decoder})
    model = VisionLanguageModel(
        image_encoder=encoders.get("image"),
        text_encoder=encoders.get("text"),
        decoder=decoder,
        embed_dim=config.get("embed_dim") or 256,
        image_projection=config.get("image_projection") or "linear",
        text_projection=config.get("text_projection") or "linear",
        memory=memory,
        embed_dropout=config.get("embed_dropout") or 0.0,
        pad_id=context["pad_id"],
    )
    adapt(model, config.get("adapt"))
    return model


def _build_encoder(encoders: registry.Registry, config: registry.PartConfig, context: Mapping[str, Any]) -> Any:
    encoder = encoders.build(config, **context)
    if not isinstance(getattr(encoder, "dim", None), int):
        raise ConfigError(f"The {encoders.kind} {type(encoder).__name__} must set self.dim, its width, to an int.")
    return encoder


def _has_image_gate(config: registry.PartConfig) -> bool:
    """Whether a decoder will have one, by its option or by the default of its constructor or class."""
    name, options = registry.split_config(config, "decoder")
    cls = registry.decoders.get(name)
    default = registry.parameters(cls).get("image_gate")
    unset = getattr(cls, "image_gate", False) if default is None else default.default
    return bool(options.get("image_gate", unset))


def needs_of(losses: Mapping[str, Any]) -> frozenset[str]:
    """The outputs that a model computes for these losses, by their registry names."""
    return frozenset().union(*(registry.losses.get(name).requires for name in losses))  # type: ignore[attr-defined]


def resolve_components(config: Mapping[str, Any], memory: tuple[str, ...]) -> dict[str, Any]:
    """The configs of image_encoder, text_encoder and decoder; None where absent, or where no loss trains it (warns).

    Raises:
        ConfigError: a part is missing, or parts do not fit together.
    """
    configs = {key: config.get(key) for key in ("image_encoder", "text_encoder", "decoder")}
    if not set(memory) <= {"image", "text"} or len(set(memory)) < len(memory):
        raise ConfigError(f"memory lists 'image', 'text' or both; got {list(memory)}.")
    if config.get("losses"):
        needs = needs_of(config["losses"])
        _check_needs(configs, needs, config["losses"])
        reads_text = aligns(needs) or ("decoder" in needs and "text" in memory)
        reads_image = aligns(needs) or ("decoder" in needs and "image" in memory)
        used = {"image_encoder": reads_image, "text_encoder": reads_text, "decoder": "decoder" in needs}
        for part, keep in used.items():
            if configs[part] is not None and not keep:
                losses = list(config["losses"])
                warnings.warn(f"The {part} is left out: none of the losses {losses} trains it.", stacklevel=3)
                configs[part] = None
    if shares_decoder(configs["text_encoder"]):
        _check_shared_decoder(configs, config, memory)
    if configs["decoder"] is not None:
        for source in memory:
            if configs[f"{source}_encoder"] is None:
                raise ConfigError(f"memory lists {source!r}, but the model has no {source}_encoder.")
    if configs["image_encoder"] is None and configs["text_encoder"] is None:
        raise ConfigError("The model has no encoder: give image_encoder, text_encoder or both.")
    return configs


def shares_decoder(config: Any) -> bool:
    """Whether a text encoder shares the decoder: its constructor has an argument `decoder`."""
    if config is None:
        return False
    return "decoder" in registry.parameters(
        registry.text_encoders.get(registry.split_config(config, "text encoder")[0])
    )


def require_shared_blocks(decoder: Any, decoder_config: Any, text_config: Any) -> None:
    """Raise unless the decoder has unimodal blocks that a text encoder can share.

    Raises:
        ConfigError: it has none; the message says which option adds them.
    """
    if getattr(decoder, "words_dim", None) is not None:
        return
    name, _ = registry.split_config(decoder_config, "decoder")
    if "unimodal_depth" in registry.parameters(type(decoder)):
        advice = "Set its unimodal_depth to 1 or more; in CoCa it is half of its depth."
    else:
        advice = (
            "Among those that can have one: {name: transformer, depth: 4, unimodal_depth: 2}, and your own that sets "
            "words_dim. Or take a text encoder with weights of its own, such as {name: transformer}."
        )
    raise ConfigError(
        f"The text encoder {registry.split_config(text_config)[0]!r} is the part of the decoder that reads the words "
        f"without the memory, and the decoder {name!r} has none as it is. {advice}"
    )


def _check_shared_decoder(configs: Mapping[str, Any], config: Mapping[str, Any], memory: tuple[str, ...]) -> None:
    what = f"The text encoder {registry.split_config(configs['text_encoder'])[0]!r} is a part of the decoder"
    other = "a text encoder with weights of its own, such as {name: transformer}"
    if configs["decoder"] is None and config.get("decoder") is not None:
        raise ConfigError(
            f"{what}, and none of the losses {list(config['losses'])} trains that: add `captioning: {{}}` to "
            f"`losses:`, or take {other}."
        )
    if configs["decoder"] is None:
        raise ConfigError(
            f"{what}, and the model has none: add `decoder: {{name: transformer, depth: 4, unimodal_depth: 2}}` under "
            f"`model:`, or take {other}."
        )
    if "text" in memory:
        raise ConfigError(
            f"{what}, which cannot attend over what it makes of the words itself: take 'text' out of memory "
            f"{list(memory)}, or take {other}."
        )


def _check_needs(configs: Mapping[str, Any], needs: frozenset[str], losses: Mapping[str, Any]) -> None:
    if "decoder" in needs and configs["decoder"] is None:
        requiring = [name for name in losses if "decoder" in needs_of({name: {}})]
        raise ConfigError(
            f"The loss {requiring[0]!r} needs a decoder, and the model has none: add `decoder: {{name: transformer}}` "
            f"under `model:`, or take {requiring[0]!r} out of `losses:` for alignment only."
        )
    if aligns(needs) and (configs["image_encoder"] is None or configs["text_encoder"] is None):
        requiring = [name for name in losses if aligns(needs_of({name: {}}))]
        raise ConfigError(
            f"The loss {requiring[0]!r} aligns images and texts: give both image_encoder and text_encoder, "
            f"or take {requiring[0]!r} out of `losses:` for captioning only."
        )
