"""Part configs of `velm fit` that several config files and options say in part: one is made of them, in their order.

    first.yaml    data: {dataset: {name: csv, path: captions.csv}}
    second.yaml   data: {dataset: {path: other.csv}}                 merged: the name stays
    third.yaml    data: {dataset: {name: folder, path: images}}      replaced: another name
    option        --data.dataset='{path: more}'                      merged
    option        --data.dataset='{name: csv, path: more.csv}'       replaced: an option with a name is a whole config
    option        --data.dataset.path=more                           merged

jsonargparse merges the options of classes with signatures, and replaces a mapping as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from velm.registry.locate import locate, locate_path
from velm.registry.scalars import Float, Value, as_flow, load_yaml, plain, read_value
from velm.sources import is_foreign

__all__ = ["PARTS", "YAML_MODE", "find_option", "locate_parts", "merge_parts", "plain_options", "prepare_parser"]

PARTS = (
    "model.image_encoder", "model.text_encoder", "model.decoder", "model.balance", "model.losses", "model.adapt",
    "data.dataset", "data.tokenizer",
)  # fmt: skip
NAMELESS = ("model.losses", "model.adapt")  # {name: options}: the mapping has no name itself
YAML_MODE = "velm"
"""jsonargparse's name for VELM's way of reading YAML."""


def prepare_parser() -> None:
    """Register VELM's YAML and the type `Value` with jsonargparse."""
    import yaml
    from jsonargparse import set_loader
    from jsonargparse.typing import register_type

    set_loader(YAML_MODE, load_yaml, exceptions=(yaml.YAMLError,))
    register_type(
        Value,
        serializer=plain,
        deserializer=lambda value: value,
        type_check=lambda value, hint: True,
        fail_already_registered=False,
    )
    yaml.SafeDumper.add_representer(Float, lambda dumper, value: dumper.represent_float(float(value)))


def merge_parts(args: Sequence[str]) -> list[str]:
    """The arguments, with an option at the end for each part config that more than one of them says something of."""
    merged: dict[str, Any] = {}
    count: dict[str, int] = {}
    for path, keys, value, in_file in _settings(args):
        count[path] = count.get(path, 0) + 1 + bool(keys)
        known = merged.get(path)
        if keys:
            merged[path] = _set(known, keys, value)
        elif path in NAMELESS:
            merged[path] = _merge_each(known, value) if in_file else value
        elif not in_file and isinstance(value, Mapping) and "name" in value:
            merged[path] = value
        else:
            merged[path] = _merge({"name": known} if isinstance(known, str) else known, value)
    several = {path: merged[path] for path, times in count.items() if times > 1}
    return [
        *args,
        *(f"--{path}={value if isinstance(value, str) else as_flow(value)}" for path, value in several.items()),
    ]


def locate_parts(config: Any, folders: Sequence[str]) -> None:
    """Replace the paths of a run's parsed config by those of files that exist, see `velm.registry.locate`."""
    for part in PARTS:
        section, name = part.split(".")
        config[section][name] = locate(config[section][name], folders)
    for options in (config.model.losses or {}).values():
        if isinstance(options, dict) and isinstance(options.get("teacher"), str) and not is_foreign(options["teacher"]):
            options["teacher"] = locate_path(options["teacher"], folders)
    if config.model.pretrained is not None and not is_foreign(config.model.pretrained):
        config.model.pretrained = locate_path(config.model.pretrained, folders)
    if isinstance(config.data.cache_features, str):
        config.data.cache_features = os.path.expanduser(config.data.cache_features)
    files = {name: locate_path(name, folders) for name in config.plugins if name.endswith(".py")}
    for section in (config, config.model, config.data):
        if section.plugins:
            section.plugins = [files.get(name, name) for name in section.plugins]


def plain_options(config: Any) -> None:
    """Turn the numbers of a run's parsed config into plain ones, in place.

    Part configs keep their `Float`, of which `velm.registry` makes what the option takes; elsewhere it would go into
    the optimizer's state, and the checkpoint with it.
    """
    for key, value in list(config.items(branches=False)):
        if _part_of(key) is None:
            config[key] = plain(value)


def find_option(args: Sequence[str], path: str) -> Any:
    """The value that the arguments and their config files give an option, the last one; None if none does."""
    value = None
    for _, keys, value_, _ in _settings(args, (path,)):
        value = value if keys else value_
    return value


def _settings(args: Sequence[str], parts: Sequence[str] = PARTS) -> Iterator[tuple[str, list[str], Any, bool]]:
    """What is said of each part, in order: its path, the keys below it, the value, whether a file says it."""
    rest = iter(args)
    for argument in rest:
        option, equals, text = argument.partition("=")
        name = option.removeprefix("--")
        known = name in ("config", "model", "data") or option == "-c" or _part_of(name, parts) is not None
        if not known or not option.startswith("-"):
            continue
        value = text if equals else next(rest, None)
        if value is None:
            return
        part = _part_of(name, parts)
        if part is not None:
            keys = name[len(part) + 1 :].split(".") if name != part else []
            yield part, keys, read_value(value) if keys else _read_config(value, value), False
        else:
            prefix = f"{name}." if name in ("model", "data") else ""
            yield from _in_mapping(_read_config(value, {}), prefix, Path(value).parent, parts)


def _part_of(name: str, parts: Sequence[str] = PARTS) -> str | None:
    return next((part for part in parts if name == part or name.startswith(f"{part}.")), None)


def _in_mapping(
    config: Any, prefix: str, folder: Path, parts: Sequence[str]
) -> Iterator[tuple[str, list[str], Any, bool]]:
    """What a config file says of the parts; a section may be the path of another file, from the folder of the first."""
    for part in parts:
        inside: Any = config
        for key in part.removeprefix(prefix).split(".") if part.startswith(prefix) else ["\0"]:
            inside = _read_config(str(folder / inside), {}) if isinstance(inside, str) else inside
            inside = inside.get(key, ...) if isinstance(inside, Mapping) else ...
        if inside is not ...:
            yield part, [], inside, True


def _read_config(text: str, otherwise: Any) -> Any:
    """The content of a config file, or of a mapping in YAML; `otherwise` where it is neither: jsonargparse tells."""
    import yaml

    try:
        path = Path(text).expanduser()
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            return load_yaml(path.read_text(encoding="utf-8"))
        value = read_value(text) if text.strip()[:1] in "{[\"'" or ":" not in text else load_yaml(text)
    except (OSError, ValueError, yaml.YAMLError):
        return otherwise
    return value if not isinstance(value, str) or not isinstance(otherwise, Mapping) else otherwise


def _set(config: Any, keys: Sequence[str], value: Any) -> Any:
    """`config` with one option set, below nested mappings."""
    level = {"name": config} if isinstance(config, str) else dict(config or {})
    first, *rest = keys
    return {**level, first: _set(level.get(first), rest, value) if rest else value}


def _merge(config: Any, changes: Any) -> Any:
    """`config` changed by a mapping; anything else, and a mapping with another name, replaces it."""
    if not isinstance(changes, Mapping) or not isinstance(config, Mapping):
        return changes
    if "name" in changes and changes["name"] != config.get("name"):
        return dict(changes)
    return {**config, **{key: _merge(config.get(key), value) for key, value in changes.items()}}


def _merge_each(configs: Any, changes: Any) -> Any:
    if not isinstance(configs, Mapping) or not isinstance(changes, Mapping):
        return changes
    known = {name: {"name": config} if isinstance(config, str) else config or {} for name, config in configs.items()}
    return {**configs, **{name: _merge(known.get(name, {}), options or {}) for name, options in changes.items()}}


def template_of(decoder: Any) -> str | None:
    """The template of a decoder's part config, which the data fills with texts."""
    return decoder.get("template") if isinstance(decoder, Mapping) else None
