"""Part configs, `{name: vit, depth: 6}`: split into name and options, validated against a constructor's type hints.

Nothing is built before every option is known, typed and present.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from velm._compat import option_type
from velm.errors import ConfigError
from velm.registry.scalars import as_text, plain, unparsed
from velm.util import did_you_mean

__all__ = ["PartConfig", "as_typed", "parameters", "path_of", "split_config", "validated"]

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
        hint = option_type(parser, key)
        value = _as_hinted(value, hint)
        if isinstance(value, str) and _is_text(hint):
            typed[key] = str(value)
            continue
        try:
            given = unparsed(value) if _takes_anything(hint) else value
            typed[key] = plain(parser.parse_object({key: given}, defaults=False)[key])
        except jsonargparse.ArgumentError as error:
            annotation = parameters(cls)[key].annotation
            expected = getattr(annotation, "__name__", None) if inspect.isclass(annotation) else annotation
            raise ConfigError(
                f"The option {key!r} of the {what} takes {expected}; got {value!r} ({type(value).__name__})."
            ) from error
    return typed


def as_typed(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the text that was typed where the type hint is text; the others, and unknown ones, as given.

    A config that is stored keeps `split_column: 1.10` so; as a number it would come back as 1.1.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    return {key: _as_hinted(value, option_type(parser, key)) for key, value in options.items()}


def _as_hinted(value: Any, hint: Any) -> Any:
    """The value, with each scalar in it as the text that was typed where the type hint takes text and not the scalar.

    No conversion to other types: a text for an option that takes a number is parsed afterwards.
    """
    if hint is str:
        return as_text(value)
    members, origin = get_args(hint), get_origin(hint)
    if origin in (Union, UnionType):
        if any(_takes(member, value) for member in members if member is not str):
            return _as_hinted(value, next(m for m in members if m is not str and _takes(m, value)))
        return as_text(value) if str in members else value
    if origin in (list, tuple, set, Sequence) and type(value) is list and members:
        return [_as_hinted(item, members[0]) for item in value]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {_as_hinted(key, members[0]): _as_hinted(item, members[1]) for key, item in value.items()}
    return value


def _is_text(hint: Any) -> bool:
    """Whether a text for the option stays one; jsonargparse would read the text null as None, and 7 as a number."""
    union = get_origin(hint) in (Union, UnionType)
    return hint is str or (union and str in get_args(hint) and bool not in get_args(hint))


def _takes_anything(hint: Any) -> bool:
    return hint in (Any, None, inspect.Parameter.empty) or any(_takes_anything(member) for member in get_args(hint))


def _takes(hint: Any, value: Any) -> bool:
    """Whether a value is of a type hint as it is."""
    if isinstance(value, list | Mapping):
        kinds = (list, tuple, set, Sequence) if isinstance(value, list) else (dict, Mapping)
        return hint in kinds or get_origin(hint) in kinds
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if inspect.isclass(hint) and issubclass(hint, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return hint is Any or (
        inspect.isclass(hint)
        and issubclass(type(value), hint)
        and hint is not object
        and (isinstance(value, bool) == (hint is bool))
    )


def path_of(cls: type) -> str:
    """The dotted path of a class, 'module:Class'."""
    return f"{cls.__module__}:{cls.__qualname__}"
