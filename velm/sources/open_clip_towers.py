"""open_clip's towers as VELM's: which options they have, and where their weights go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from velm.sources.state_dict import StateDict, class_token, embedding_rows, fused_block, renamed

__all__ = ["Towers", "read_towers"]


@dataclass
class Towers:
    """Both towers in VELM's terms.

    Attributes:
        image, text: part configs.
        image_projection, text_projection: see `velm.model.model.build_projection`.
        tokenizer: part config.
        max_length: longest text in tokens, bos and eos included.
        weights: takes the weights out of a state dict for a number of tokens, by their names in a task.
    """

    image: dict[str, Any]
    text: dict[str, Any]
    image_projection: str
    text_projection: str
    tokenizer: dict[str, Any]
    max_length: int
    weights: Callable[[StateDict, int], dict[str, Tensor]]


_VISION = {
    "image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout", "pool_type",
    "act_kwargs", "norm_kwargs", "no_ln_pre", "image_mean", "image_std", "output_tokens",
}  # fmt: skip
_TEXT = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "act_kwargs", "norm_kwargs",
    "no_causal_mask", "proj_bias", "proj_type", "tokenizer_kwargs", "hf_tokenizer_name", "pad_id", "eos_id",
    "output_tokens",
}  # fmt: skip


def read_towers(model: Mapping[str, Any], folder: Path | None) -> Towers:
    """The towers of a `model_cfg`.

    Args:
        folder: where tokenizer files may be.

    Raises:
        ValueError: VELM has no such tower; the message names the option.
    """
    vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
    if "multimodal_cfg" in model:
        raise ValueError("it is a CoCa, which VELM does not import yet.")
    if isinstance(vision.get("layers"), list):
        raise ValueError("its image tower is OpenAI's modified ResNet, which VELM does not have. Take a ViT.")
    for side, options, known in (("vision_cfg", vision, _VISION), ("text_cfg", text, _TEXT)):
        unknown = sorted(name for name, value in options.items() if name not in known and value not in (None, False))
        if unknown:
            raise ValueError(f"its {side} has {unknown[0]} = {options[unknown[0]]!r}, which VELM's towers do not have.")
    quick = bool(model.get("quick_gelu"))
    custom = bool(model.get("custom_text")) or bool({"hf_model_name", "timm_model_name"} & {*vision, *text})
    image, tokens = _image_tower(vision, quick), _text_tower(text, quick)
    projection = "affine" if text.get("proj_bias") else "linear"
    if text.get("proj_type") == "none":
        raise ValueError("its texts have no projection (proj_type: none), which VELM does not import.")
    return Towers(
        image=image,
        text=tokens,
        image_projection="linear",
        text_projection=projection,
        tokenizer=_tokenizer(text, folder),
        max_length=tokens["max_length"],
        weights=partial(_weights, image, tokens, "text." if custom else "", projection),
    )


def _activation(options: Mapping[str, Any], quick: bool) -> str:
    tanh = (options.get("act_kwargs") or {}).get("approximate") == "tanh"
    return "quick_gelu" if quick else "gelu_tanh" if tanh else "gelu"


def _image_tower(vision: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    width, patch, size = int(vision["width"]), int(vision["patch_size"]), int(vision["image_size"])
    if vision.get("pool_type", "tok") != "tok":
        raise ValueError(f"its image tower pools by {vision['pool_type']!r}; VELM imports class tokens ('tok').")
    return {
        "name": "vit", "dim": width, "depth": int(vision["layers"]),
        "heads": width // int(vision.get("head_width", 64)), "patch_size": patch,
        "mlp_ratio": float(vision.get("mlp_ratio", 4.0)), "positions": "learned", "position_grid": size // patch,
        "pooling": "class", "input_norm": not vision.get("no_ln_pre", False),
        "patch_bias": False, "activation": _activation(vision, quick), "norm_eps": _norm_eps(vision),
    }  # fmt: skip


def _norm_eps(options: Mapping[str, Any]) -> float:
    return float((options.get("norm_kwargs") or {}).get("eps", 1e-5))


def _text_tower(text: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    length, bidirectional = int(text.get("context_length", 77)), bool(text.get("no_causal_mask"))
    pool, fill = text.get("pool_type", "argmax"), int(text.get("pad_id", 0))
    if pool not in ("argmax", "eos", "last"):
        raise ValueError(f"its text tower pools by {pool!r}; VELM imports argmax, eos and last.")
    tower: dict[str, Any] = {
        "name": "transformer", "dim": int(text.get("width", 512)), "depth": int(text.get("layers", 12)),
        "heads": int(text.get("heads", 8)), "mlp_ratio": float(text.get("mlp_ratio", 4.0)), "max_length": length,
        "pooling": "last", "causal": not bidirectional, "activation": _activation(text, quick),
        "norm_eps": _norm_eps(text),
    }  # fmt: skip
    if bidirectional:  # it attends over the padding
        tower |= {"fixed_length": length, "fill_id": fill}
    if pool == "last":  # SigLIP: no bos, and the last position of the padding is pooled
        tower |= {"pooling": "end", "fixed_length": length, "fill_id": 1, "reads_bos": False, "max_length": length + 1}
    return tower


def _tokenizer(text: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    name = text.get("hf_tokenizer_name")
    if name is None:
        return {"name": "clip"}
    options = text.get("tokenizer_kwargs") or {}
    if options.get("strip_sep_token"):
        raise ValueError("its tokenizer strips [SEP] (CLIPA), which VELM's do not.")
    local = folder is not None and any((folder / file).is_file() for file in ("tokenizer.json", "spiece.model"))
    where = str(folder) if local else name
    clean = {"clean": options["clean"]} if options.get("clean") else {}
    return {"name": f"hf/{where}", **clean}


def _weights(
    image: Mapping[str, Any], text: Mapping[str, Any], prefix: str, projection: str, state: StateDict, vocab_size: int
) -> dict[str, Tensor]:
    pixels = {
        "patches.weight": state.take("visual.conv1.weight"),
        **class_token(state.take("visual.class_embedding"), state.take("visual.positional_embedding")),
        **(state.linear("visual.ln_pre", "input_norm") if image["input_norm"] else {}),
        **state.linear("visual.ln_post", "norm"),
    }
    for block in range(image["depth"]):
        pixels |= fused_block(state, f"visual.transformer.resblocks.{block}", f"blocks.{block}")
    words = {
        "embedding.weight": embedding_rows(state.take(f"{prefix}token_embedding.weight"), vocab_size),
        "positions.weight": state.take(f"{prefix}positional_embedding"),
        **state.linear(f"{prefix}ln_final", "norm"),
    }
    for block in range(text["depth"]):
        words |= fused_block(state, f"{prefix}transformer.resblocks.{block}", f"blocks.{block}")
    to = "model.text_projection"
    if projection == "affine":
        out = state.linear(f"{prefix}text_projection", to)
    else:
        out = {f"{to}.weight": state.take(f"{prefix}text_projection").T.contiguous()}
    return {
        **renamed(pixels, "model.image_encoder."),
        **renamed(words, "model.text_encoder."),
        "model.image_projection.weight": state.take("visual.proj").T.contiguous(),
        **out,
    }
