"""Part configs, `{name: vit, depth: 6}`: split into name and options, validated against a constructor's type hints.

Nothing is built before every option is known, typed and present.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from velm.errors import ConfigError
from velm.util import did_you_mean

__all__ = ["PartConfig", "parameters", "path_of", "split_config", "validated"]

PartConfig = str | Mapping[str, Any]
"""The config of one part: its name, or a mapping with a 'name' and options."""


def split_config(config: PartConfig, kind: str = "part") -> tuple[str, dict[str, Any]]:
    """The name and the options of a part config; a class as the name stands for its dotted path.

    Raises:
        ConfigError: neither a name nor a mapping with a 'name'.
    """
    if isinstance(config, str):
        config = {"name": config}
    if not isinstance(config, Mapping) or not config.get("name"):
        raise ConfigError(
            f"The config of the {kind} is a name or a mapping with a 'name': {{name: ...}}; got {config!r}."
        )
    name, options = config["name"], {key: value for key, value in config.items() if key != "name"}
    return (path_of(name) if inspect.isclass(name) else str(name)), options


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's arguments by name, without self."""
    signature = inspect.signature(cls)
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in signature.parameters.items() if p.kind not in skipped}


def validated(cls: type, options: dict[str, Any], context: dict[str, Any], what: str) -> dict[str, Any]:
    """The options, converted to the types of the constructor's hints.

    Args:
        cls: the class to build.
        options: of the part config.
        context: arguments from the builder; no option may set them again.
        what: kind and name of the part, for messages.

    Raises:
        ConfigError: an option does not exist, has the wrong type or is missing.
    """
    accepted = {key: p for key, p in parameters(cls).items() if key not in context}
    for key in options:
        if key not in accepted:
            guess = did_you_mean(key, accepted)
            raise ConfigError(f"The {what} has no option {key!r}.{guess} Its options: {', '.join(accepted) or 'none'}.")
    missing = [key for key, p in accepted.items() if p.default is p.empty and key not in options]
    if missing:
        raise ConfigError(f"The {what} needs {', '.join(missing)}. Its options: {', '.join(accepted)}.")
    return _convert(cls, options, set(accepted) - set(options) | set(context), what)


def _convert(cls: type, options: dict[str, Any], skip: set[str], what: str) -> dict[str, Any]:
    """Parse each option by its type hint; one parser per option, so that an error names its option and value."""
    import jsonargparse

    typed = {}
    for key, value in options.items():
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, skip=skip | (set(options) - {key}), fail_untyped=False)
        try:
            typed[key] = parser.parse_object({key: value}, defaults=False)[key]
        except jsonargparse.ArgumentError as error:
            annotation = parameters(cls)[key].annotation
            expected = getattr(annotation, "__name__", None) if inspect.isclass(annotation) else annotation
            raise ConfigError(
                f"The option {key!r} of the {what} takes {expected}; got {value!r} ({type(value).__name__})."
            ) from error
    return typed


def path_of(cls: type) -> str:
    """The dotted path of a class, 'module:Class'."""
    return f"{cls.__module__}:{cls.__qualname__}"
