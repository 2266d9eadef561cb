"""Models of open_clip: `open_clip/<architecture>@<tag or file>`, `open_clip/<folder>`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from velm.errors import MissingPackageError
from velm.pretrained.weights import read_state_dict
from velm.sources.foreign import ForeignModel
from velm.sources.open_clip_towers import Towers, read_towers
from velm.sources.state_dict import StateDict

__all__ = ["describe"]

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Files:
    """What open_clip knows of a model.

    Attributes:
        model: `model_cfg`: embed_dim, vision_cfg, text_cfg ...
        preprocess: `preprocess_cfg`: size, mean, std, interpolation, resize_mode; what is absent is the default.
        weights: returns the file of weights, downloaded if need be.
        folder: where tokenizer files may be; None: there is none.
    """

    model: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Callable[[], Path]
    folder: Path | None = None


def describe(name: str) -> ForeignModel:
    """The model of an architecture and a tag, or of a folder, see `velm.sources.describe_source`.

    Raises:
        OSError: a file is missing.
        ValueError: VELM cannot build it.
        MissingPackageError: names and tags are those of the package open_clip, which is not installed.
    """
    files = _find(name)
    towers = read_towers(files.model, files.folder)
    data, mean, std = _image_options(files, towers)
    towers.image["image_mean"], towers.image["image_std"] = mean, std
    biased = files.model.get("init_logit_bias") is not None
    return ForeignModel(
        name=f"open_clip/{name}",
        model={
            "image_encoder": towers.image, "text_encoder": towers.text, "embed_dim": int(files.model["embed_dim"]),
            "image_projection": towers.image_projection, "text_projection": towers.text_projection,
            "decoder": towers.decoder,
        },
        data={"tokenizer": towers.tokenizer, **data, "max_length": towers.max_length},
        losses={"sigmoid" if biased else "contrastive": {}, **towers.losses},
        read_weights=partial(_read_weights, files, towers, biased),
    )  # fmt: skip


def _read_weights(files: Files, towers: Towers, biased: bool, vocab_size: int) -> dict[str, Tensor]:
    path = files.weights()
    state = StateDict(read_state_dict(path), str(path))
    weights = towers.weights(state, vocab_size)
    loss = "sigmoid" if biased else "contrastive"
    weights[f"losses.{loss}.log_scale"] = state.take("logit_scale").reshape(())
    if biased:
        weights["losses.sigmoid.bias"] = state.take("logit_bias").reshape(())
    state.finish(("position_ids", "attn_mask"))
    return weights


def _find(name: str) -> Files:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _in_folder(folder)
    if folder.is_file():
        if (folder.parent / CONFIG).is_file():
            return _in_folder(folder.parent, folder)
        raise ValueError(
            f"a file of weights does not say which architecture they belong to, and there is no {CONFIG} beside it. "
            f"Name the architecture: open_clip/ViT-B-32@{name}."
        )
    architecture, at, tag = name.partition("@")
    if not at:
        raise FileNotFoundError(
            f"there is no folder or file {name!r} (seen from {Path.cwd()}). An architecture has a tag or a file of "
            f"weights behind @: open_clip/ViT-B-32@laion2b_s34b_b79k."
        )
    return _of_tag(architecture, tag)


def _in_folder(folder: Path, weights: Path | None = None) -> Files:
    """A folder as open_clip pushes it to the hub, `local-dir:` of open_clip."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"the folder {str(folder)!r} has no {CONFIG}: it is none that open_clip wrote.")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    found = weights or next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"the folder {str(folder)!r} has no weights: {' or '.join(WEIGHTS)}.")
    path = found
    return Files(config["model_cfg"], dict(config.get("preprocess_cfg") or {}), lambda: path, folder)


def _of_tag(architecture: str, tag: str) -> Files:
    open_clip = _import_open_clip()
    model = open_clip.get_model_config(architecture)
    if model is None:
        known = ", ".join(open_clip.list_models()[:6])
        raise ValueError(f"open_clip has no architecture {architecture!r}; it has {known}, ...")
    if Path(tag).expanduser().is_file():
        return Files(model, {}, lambda: Path(tag).expanduser())
    known = open_clip.get_pretrained_cfg(architecture, tag)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ValueError(
            f"open_clip has no weights {tag!r} of {architecture}, and there is no such file (seen from {Path.cwd()}). "
            f"Its tags: {tags}."
        )
    if known.get("quick_gelu"):
        model["quick_gelu"] = True
    names = {"mean": "mean", "std": "std", "interpolation": "interpolation", "resize_mode": "resize_mode"}
    preprocess = {ours: known[theirs] for ours, theirs in names.items() if known.get(theirs) is not None}

    def download() -> Path:
        try:
            return Path(open_clip.download_pretrained(known))
        except Exception as error:
            raise OSError(
                f"the weights {tag!r} of {architecture} are not in the cache and cannot be downloaded: {error}"
            ) from error

    return Files(model, preprocess, download)


def _import_open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackageError(
            "Architectures and tags are open_clip's own: pip install 'velm[open_clip]'. Without it, give a folder with "
            f"{CONFIG}."
        ) from error
    return open_clip


def _image_options(files: Files, towers: Towers) -> tuple[dict[str, Any], list[float], list[float]]:
    """Options of `data:`, and the mean and the standard deviation of pixels."""
    given: Mapping[str, Any] = files.preprocess
    size = given.get("size") or files.model["vision_cfg"].get("image_size", 224)
    sides = [size, size] if isinstance(size, int) else list(size)
    if sides[0] != sides[1]:
        raise ValueError(f"its images have {sides[0]} x {sides[1]} pixels; VELM's are squares.")
    interpolation, resize = given.get("interpolation") or "bicubic", given.get("resize_mode") or "shortest"
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"its interpolation is {interpolation!r}; VELM has bicubic and bilinear.")
    if resize == "longest" and given.get("fill_color", 0) not in (0, None):
        raise ValueError(f"its images are filled up with {given['fill_color']}; VELM fills with black.")
    options = {"image_size": int(sides[0]), "resize": resize, "interpolation": interpolation, "decode": "full"}
    options["crop_rounding"] = "even"
    vision = files.model["vision_cfg"]
    mean = given.get("mean") or vision.get("image_mean") or CLIP_MEAN
    std = given.get("std") or vision.get("image_std") or CLIP_STD
    return options, [float(value) for value in mean], [float(value) for value in std]
