"""Builds models of transformers from a config, a local folder or the Hugging Face hub.

a config            random weights                                 no file is read
a folder            its config.json and weights                    no network
a .gguf file        the GGUF file in a folder, or of a hub id      read by transformers into float32
anything else       a hub id: from the cache, else downloaded      HF_HUB_OFFLINE=1 forbids the download
"""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from velm.errors import MissingPackageError
from velm.pretrained.weights import pretrained_allowed
from velm.util import did_you_mean

_LOCAL_KEYS = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id")


def read_config(model_name: str, config: dict[str, Any] | None, overrides: dict[str, Any] | None = None) -> Any:
    """The transformers config for the options `model_name` and `config`.

    Args:
        model_name: a hub id, a folder, or with `config` a model type such as 'bert'.
        config: the model's hyper-parameters, named as in its config.json; 'model_type' goes before `model_name`.
        overrides: replace values of the config.

    Raises:
        ValueError: no such model type, or an invalid hyper-parameter.
        OSError: no such folder, or the hub cannot be reached.
    """
    import transformers

    if config is None:
        loaded = _from_hub(transformers.AutoConfig, model_name)
        for key, value in (overrides or {}).items():
            setattr(loaded, key, value)
        return loaded
    options = {**config, **(overrides or {})}
    model_type = str(options.pop("model_type", model_name))
    if model_type not in transformers.CONFIG_MAPPING:
        guess = did_you_mean(model_type, list(transformers.CONFIG_MAPPING.keys()))
        raise ValueError(
            f"With a config, hf/{model_name} must name a model type of transformers {transformers.__version__}, "
            f"or the config its model_type; {model_type!r} is none.{guess}"
        )
    try:
        return transformers.AutoConfig.for_model(model_type, **options)
    except Exception as cause:
        raise ValueError(f"The config of hf/{model_name} is refused: {type(cause).__name__}: {cause}") from cause


def build(
    cls: Any, config: Any, model_name: str, pretrained: bool, new_parts: tuple[str, ...] = (), pooler: bool = False
) -> Any:
    """An instance of the transformers class `cls`, in float32, with the weights of `model_name` or random ones.

    Args:
        new_parts: weights whose name contains one of these may be missing; they are random then.
        pooler: build the pooling layer, which most models do not use.

    Raises:
        ValueError: the weights belong to another architecture.
        OSError: they cannot be read.
    """
    options: dict[str, Any] = (
        {"add_pooling_layer": pooler} if "add_pooling_layer" in inspect.signature(cls).parameters else {}
    )
    if not (pretrained and pretrained_allowed()):
        return cls._from_config(config, dtype=torch.float32, **options)
    options |= {"config": config, "dtype": torch.float32, "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True  # refused below, with the number
    model, info = _from_hub(cls, model_name, **options)
    missing = sorted(name for name in info["missing_keys"] if not any(part in name for part in new_parts))
    if missing or info["mismatched_keys"]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"The weights of {model_name!r} do not fit {cls.__name__}: {len(missing)} missing ({shown}), "
            f"{len(info['mismatched_keys'])} of another shape. Download them again if they are not complete, name a "
            f"model of this architecture, or set pretrained: false."
        )
    _refuse_more_blocks(model, info["unexpected_keys"], model_name)
    return model


def _refuse_more_blocks(model: nn.Module, unexpected: Collection[str], model_name: str) -> None:
    """Raise a ValueError if weights were left over that belong to further blocks of the model's own kind.

    Other left-over weights are heads and buffers of a larger model.
    """
    own = {re.sub(r"\.\d+\.", ".N.", name) for name in model.state_dict()}
    more = sorted(name for name in unexpected if re.sub(r"\.\d+\.", ".N.", name) in own)
    if more:
        raise ValueError(
            f"The weights of {model_name!r} have more blocks than its config.json says: {len(more)} are left over "
            f"({', '.join(more[:3])}, ...). Take the config.json that belongs to them."
        )


def model_class(config: Any, mapping: Any = None) -> Any:
    """The transformers class for a config: the bare model, or that of `mapping`; None if there is none."""
    import transformers

    mapping = transformers.MODEL_MAPPING if mapping is None else mapping
    if type(config) in mapping:
        cls = mapping[type(config)]
        return cls[0] if isinstance(cls, (tuple, list)) else cls
    if mapping is transformers.MODEL_MAPPING:
        return getattr(transformers, type(config).__name__.replace("Config", "Model"), None)
    return None


def portable_config(config: Any) -> dict[str, Any]:
    """A config as plain Python that `read_config` accepts, without local paths."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in _LOCAL_KEYS}


def token_ids(vocab_size: int, pad_id: int) -> dict[str, int]:
    """Config values from the tokenizer; bos and eos are set only so that they are valid ids."""
    return {"vocab_size": vocab_size, "pad_token_id": pad_id, "bos_token_id": pad_id, "eos_token_id": pad_id}


def fit_vocabulary(model: Any, config: Any, vocab_size: int, model_name: str, *, exact: bool = False) -> None:
    """Resize the vocabulary of a pretrained `model` to the tokenizer's, if they match.

    The tokenizer may have a few more special tokens (new rows are random), the model a few unused rows.

    Args:
        exact: remove unused rows.

    Raises:
        ValueError: the sizes differ too much to be the same vocabulary.
    """
    surplus = config.vocab_size - vocab_size
    if not -64 <= surplus <= 1024:
        raise ValueError(
            f"The tokenizer has {vocab_size} tokens, the pretrained model {model_name!r} knows {config.vocab_size}: "
            f"they do not belong together. Use its own tokenizer, {{name: hf/{model_name}}}, or a config in place of "
            f"pretrained weights."
        )
    if surplus < 0 or (exact and surplus > 0):
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        config.vocab_size = vocab_size


def image_normalisation(model_name: str) -> tuple[list[float], list[float]] | None:
    """`image_mean` and `image_std` of a folder's or a cached model's preprocessor_config.json, if there is one."""
    from transformers.utils import cached_file

    if not pretrained_allowed():
        return None
    try:
        path = cached_file(model_name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        values = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        return None
    mean, std = values.get("image_mean"), values.get("image_std")
    return (list(mean), list(std)) if isinstance(mean, list) and isinstance(std, list) else None


def image_processor(model_name: str) -> Any:
    """The image processor of a folder or a hub id, whose attributes are those of its preprocessor_config.json.

    Raises:
        OSError: there is none.
    """
    import transformers

    return _from_hub(transformers.AutoImageProcessor, model_name)


def generation_config(model_name: str) -> Any:
    """The generation_config.json of a folder or a cached model; None if there is none."""
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(model_name, local_files_only=True)
    except OSError:
        return None


def split_gguf(model_name: str) -> tuple[str, dict[str, str]]:
    """'folder/model.gguf' as the folder or hub id, and the option of transformers' `from_pretrained` for the file.

    Raises:
        MissingPackageError: it is a GGUF file, which transformers reads by the package gguf.
        FileNotFoundError: the folder has no such file.
    """
    if not model_name.endswith(".gguf"):
        return model_name, {}
    folder, _, file = model_name.rpartition("/")
    try:
        import gguf  # noqa: F401 - transformers' message names no extra of VELM
    except ImportError as error:
        raise MissingPackageError(
            f"{model_name!r} is a GGUF file, which needs gguf ({error}): pip install 'velm[gguf]'."
        ) from error
    path = Path(folder or ".").expanduser()
    if path.is_dir() and not (path / file).is_file():
        raise FileNotFoundError(f"There is no file {file!r} in the folder {str(path)!r} (seen from {Path.cwd()}).")
    return folder or ".", {"gguf_file": file}


def _from_hub(cls: Any, model_name: str, **options: Any) -> Any:
    model_name, gguf = split_gguf(model_name)
    options |= gguf
    folder = Path(model_name).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or model_name.startswith((".", "~")) or model_name.count("/") > 1):
        raise FileNotFoundError(
            f"There is no folder {model_name!r} (seen from {Path.cwd()}). Give a folder written by save_pretrained, a "
            f"hub id such as 'google/vit-base-patch16-224', or a model type with a config."
        )
    path = str(folder) if folder.is_dir() else model_name
    options = {**options, "trust_remote_code": False}
    try:
        return cls.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError) as cause:
        _refuse_code(model_name, cause)
        if folder.is_dir():
            raise OSError(f"The folder {model_name!r} cannot be read as a transformers model: {cause}") from cause
    try:
        _reach_hub()
        return cls.from_pretrained(path, **options)
    except (OSError, ValueError) as cause:
        _refuse_code(model_name, cause)
        offline = " Downloads are forbidden by HF_HUB_OFFLINE." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise OSError(
            f"{model_name!r} is no folder here (seen from {Path.cwd()}), not in the Hugging Face cache, and cannot be "
            f"fetched from the hub: offline, or no such model.{offline} Give a folder written by save_pretrained, or a "
            f"model type with a config. Cause: {str(cause).splitlines()[0]}"
        ) from cause


def _refuse_code(model_name: str, cause: Exception) -> None:
    """Raise a ValueError if transformers failed because a model brings Python code of its own."""
    if "trust_remote_code" in str(cause):
        raise ValueError(
            f"{model_name!r} runs Python code of its authors (trust_remote_code), and VELM runs none. Name a model of "
            f"a class that transformers has."
        ) from cause


def _reach_hub() -> None:
    """Raise an OSError at once without a network: the hub client retries for 30 seconds per file."""
    if os.environ.get("HF_HUB_OFFLINE") or any(getproxies().get(kind) for kind in ("http", "https", "all")):
        return  # the client handles these
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    socket.create_connection((address.hostname or "", port), timeout=5).close()


def resolve_pretrained(model_name: str, config: dict[str, Any] | None, pretrained: bool | None) -> bool:
    """Whether to load weights; by default, if there is no config.

    Raises:
        ValueError: a config and `pretrained: true` together.
    """
    if config is not None and pretrained:
        raise ValueError(
            f"hf/{model_name} has a config, which builds random weights, and pretrained: true. Leave one of them out."
        )
    return config is None if pretrained is None else pretrained


def freeze(model: nn.Module, trainable: bool, used: set[str] | None = None) -> None:
    """Train the parameters in `used` (None: all) if `trainable`, else none."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable and (used is None or name in used))
