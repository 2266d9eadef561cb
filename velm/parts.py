"""Which parts a model's config asks for, and whether they go together, before any is built."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from velm.outputs import EMBEDS
from velm.registry import SpecError, parameters, split_spec, text_encoders
from velm.registry import losses as registered

__all__ = ["check_words", "needs_of", "shares_decoder", "wanted_parts"]


def needs_of(losses: Mapping[str, Any]) -> frozenset[str]:
    """What a model must compute for these losses (their names as in the registry)."""
    return frozenset().union(*(registered.get(name).requires for name in losses))  # type: ignore[attr-defined]


def wanted_parts(config: Mapping[str, Any], memory: tuple[str, ...]) -> dict[str, Any]:
    """The specs of image_encoder, text_encoder and decoder; None where there is none, or no loss trains it (a warning).

    Raises:
        SpecError: a part is missing, or parts do not fit together.
    """
    specs = {key: config.get(key) for key in ("image_encoder", "text_encoder", "decoder")}
    if not set(memory) <= {"image", "text"} or len(set(memory)) < len(memory):
        raise SpecError(f"memory lists 'image', 'text' or both; got {list(memory)}.")
    if config.get("losses"):
        needs = needs_of(config["losses"])
        _check_needs(specs, needs, config["losses"])
        reads_text = bool(EMBEDS & needs) or ("decoder" in needs and "text" in memory)
        reads_image = bool(EMBEDS & needs) or ("decoder" in needs and "image" in memory)
        wanted = {"image_encoder": reads_image, "text_encoder": reads_text, "decoder": "decoder" in needs}
        for part, keep in wanted.items():
            if specs[part] is not None and not keep:
                losses = list(config["losses"])
                warnings.warn(f"The {part} is left out: none of the losses {losses} trains it.", stacklevel=3)
                specs[part] = None
    if shares_decoder(specs["text_encoder"]):
        _check_shared(specs, config, memory)
    if specs["decoder"] is not None:
        for source in memory:
            if specs[f"{source}_encoder"] is None:
                raise SpecError(f"memory lists {source!r}, but the model has no {source}_encoder.")
    if specs["image_encoder"] is None and specs["text_encoder"] is None:
        raise SpecError("The model has no encoder: give image_encoder, text_encoder or both.")
    return specs


def shares_decoder(spec: Any) -> bool:
    """Whether a text encoder wants to be handed the decoder."""
    if spec is None:
        return False
    return "decoder" in parameters(text_encoders.get(split_spec(spec, "text encoder")[0]))


def check_words(decoder: Any, decoder_spec: Any, text_spec: Any) -> None:
    """See that a decoder has what a text encoder can go on from.

    Raises:
        SpecError: it has not.
    """
    if getattr(decoder, "words_dim", None) is not None:
        return
    name, _ = split_spec(decoder_spec, "decoder")
    if "unimodal_depth" in parameters(type(decoder)):
        advice = "Set its unimodal_depth to 1 or more; in CoCa it is half of its depth."
    else:
        advice = (
            "Among those that can have one: {name: transformer, depth: 4, unimodal_depth: 2}, and your own that sets "
            "words_dim. Or take a text encoder with weights of its own, such as {name: transformer}."
        )
    raise SpecError(
        f"The text encoder {split_spec(text_spec)[0]!r} is the part of the decoder that reads the words "
        f"without the memory, and the decoder {name!r} has none as it is. {advice}"
    )


def _check_shared(specs: Mapping[str, Any], config: Mapping[str, Any], memory: tuple[str, ...]) -> None:
    what = f"The text encoder {split_spec(specs['text_encoder'])[0]!r} is a part of the decoder"
    other = "a text encoder with weights of its own, such as {name: transformer}"
    if specs["decoder"] is None and config.get("decoder") is not None:
        raise SpecError(
            f"{what}, and none of the losses {list(config['losses'])} trains that: add `captioning: {{}}` to "
            f"`losses:`, or take {other}."
        )
    if specs["decoder"] is None:
        raise SpecError(
            f"{what}, and the model has none: add `decoder: {{name: transformer, depth: 4, unimodal_depth: 2}}` under "
            f"`model:`, or take {other}."
        )
    if "text" in memory:
        raise SpecError(
            f"{what}, which cannot attend over what it makes of the words itself: take 'text' out of memory "
            f"{list(memory)}, or take {other}."
        )


def _check_needs(specs: Mapping[str, Any], needs: frozenset[str], losses: Mapping[str, Any]) -> None:
    if "decoder" in needs and specs["decoder"] is None:
        wanting = [name for name in losses if "decoder" in needs_of({name: {}})]
        raise SpecError(
            f"The loss {wanting[0]!r} needs a decoder, and the model has none: add `decoder: {{name: transformer}}` "
            f"under `model:`, or take {wanting[0]!r} out of `losses:` for alignment only."
        )
    if EMBEDS & needs and (specs["image_encoder"] is None or specs["text_encoder"] is None):
        wanting = [name for name in losses if EMBEDS & needs_of({name: {}})]
        raise SpecError(
            f"The loss {wanting[0]!r} aligns pictures and sentences: give both image_encoder and text_encoder, "
            f"or take {wanting[0]!r} out of `losses:` for captioning only."
        )
