"""The plugins of a checkpoint: which distribution provides each part, and whether it is installed.

`make_manifest` is called when a checkpoint is written, `require_parts` when it is loaded.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from velm.errors import CheckpointError, MissingPluginError, PluginError, UnknownNameError
from velm.registry.builtin import KINDS
from velm.registry.options import split_config
from velm.registry.plugins import load_plugins
from velm.registry.registry import Registry, import_path

__all__ = ["make_manifest", "require_parts"]


def make_manifest(config: Mapping[str, Any], tokenizer_name: str, dataset: Any) -> list[dict[str, str]]:
    """Kind, name, target, distribution and version of every part that is not VELM's own.

    Args:
        config: the model config.
        tokenizer_name: the tokenizer's name in the registry.
        dataset: the dataset's part config; None: no dataset.
    """
    rows: list[dict[str, str]] = []
    for kind, name in _parts({**config, "tokenizer": tokenizer_name, "dataset": dataset}):
        entry, _ = _registry(kind).find(name)
        if entry.distribution != "velm":
            row = {"target": entry.target, "distribution": entry.distribution, "version": entry.version}
            rows.append({"kind": kind, "name": name, **row})
    return rows


def require_parts(
    manifest: Sequence[Mapping[str, str]], modules: Sequence[str], config: Mapping[str, Any], owner: str
) -> None:
    """Import the classes that `config` names; warn if a distribution has another version than in the manifest.

    Args:
        manifest: rows of `make_manifest`, stored in the checkpoint.
        modules: modules or .py files whose decorators register parts.
        config: a model config, or part configs by kind.
        owner: the checkpoint, for messages.

    Raises:
        MissingPluginError: a part is not installed; the message names its distribution and how to install it.
        CheckpointError: a part is not of its kind's base class.
    """
    modules_error: PluginError | None = None
    try:
        load_plugins(modules)
    except PluginError as error:  # ignored unless one of its parts is missing below
        modules_error = error
    rows = {(row["kind"], row["name"]): row for row in manifest}
    for kind, name in _parts(config):
        row = rows.get((kind, name), {})
        try:
            entry, _ = _registry(kind).find(name)
            cls = _registry(kind).get(name)
        except (UnknownNameError, PluginError) as error:
            raise MissingPluginError(_missing(owner, kind, name, row, modules_error, error)) from error
        _require_contract(owner, kind, name, cls)
        if row:
            _warn_about_version(owner, kind, name, row, entry.distribution, entry.version)


def _parts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    kinds = ("image_encoder", "text_encoder", "decoder", "tokenizer", "dataset")
    parts = [(kind, split_config(config[kind], kind)[0]) for kind in kinds if config.get(kind)]
    return parts + [("loss", name) for name in config.get("losses") or {}]


def _registry(kind: str) -> Registry:
    return KINDS["losses" if kind == "loss" else f"{kind}s"]


def _missing(
    owner: str,
    kind: str,
    name: str,
    row: Mapping[str, str],
    modules_error: PluginError | None,
    error: Exception,
) -> str:
    what = f"{owner} was trained with the {_registry(kind).kind} {name!r}"
    distribution = row.get("distribution", "")
    if distribution and not distribution.startswith("(") and _installed(distribution) is None:
        wanted = f"{distribution}=={row['version']}" if row.get("version") else distribution
        return (
            f"{what} ({row['target']}) of the distribution {distribution} {row.get('version', '')}, which is not "
            f"installed. Do: pip install {wanted}"
        )
    if modules_error is not None:
        return (
            f"{what}, which is not here. {modules_error} Put it back there, or import or name the file that has it "
            f"now: velm.load(..., plugins=['my_file.py']), --plugins my_file.py"
        )
    return f"{what} ({row.get('target', 'unknown')}), which cannot be had here. {error}"


def _require_contract(owner: str, kind: str, name: str, cls: type) -> None:
    """Raise unless `cls` derives from the base class of its kind: a dotted path in a file may name any class.

    Without this check, {name: 'subprocess:Popen', args: ...} would run a command when the checkpoint is loaded.
    """
    contract = import_path(_registry(kind).contract)
    if not issubclass(cls, contract):
        raise CheckpointError(
            f"{owner} names {name!r} as its {_registry(kind).kind}, which is no {contract.__name__}; it was not built. "
            f"Do not use this file unless you trust who made it."
        )


def _warn_about_version(
    owner: str, kind: str, name: str, row: Mapping[str, str], distribution: str, version: str
) -> None:
    was, now = (row["distribution"], row["version"]), (distribution, version)
    if was != now:
        warnings.warn(
            f"{owner} was trained with the {_registry(kind).kind} {name!r} of {' '.join(was)}; here it comes from "
            f"{' '.join(now)}. Results may differ; pip install {row['distribution']}=={row['version']} to be sure.",
            stacklevel=3,
        )


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
