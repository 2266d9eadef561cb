"""YAML whose scalars stay what was typed, so that an option that takes text gets that text.

    true, false, null, 12, 1e-3                           boolean, null, numbers
    no, on, y, 2024-01-01, 007, 1_000, 1:30, "7", 'true'  text; YAML 1.1 reads other things into most of them

An option that takes a number gets one from the text 007 too: `velm.registry.options` converts by the option's type.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from velm.errors import ConfigError

__all__ = [
    "Float",
    "Text",
    "Value",
    "as_flow",
    "as_text",
    "load_yaml",
    "plain",
    "read_config",
    "read_value",
    "unparsed",
]

if TYPE_CHECKING:
    Value = Any
else:

    class Value:
        """The type hint of an option's value in a part config: anything, and jsonargparse leaves it as it is.

        Under `Any`, jsonargparse reads every text once more as YAML 1.1, quoted ones too. `velm.training.part_options`
        registers the type.
        """


class Text(str):
    """A text that jsonargparse does not parse."""


class Float(float):
    """A number with the text that it was typed as, such as 1e-3 or 1.10.

    Attributes:
        source: the text.
    """

    source: str

    def __new__(cls, source: Any) -> Float:
        number = super().__new__(cls, source)
        number.source = str(source)
        return number


_NULL = re.compile(r"(?:null|Null|NULL|~)")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)|"
    r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


def load_yaml(text: str) -> Any:
    """The value of a YAML text; a text that only looks like YAML ({a}, b:, #c) is itself.

    Raises:
        yaml.YAMLError: it cannot be read.
    """
    import yaml

    value = yaml.load(text, Loader=_loader())
    looks = isinstance(value, Mapping) and value and all(each is None for each in value.values())
    if looks and (":" not in text or text.strip() == f"{next(iter(value))}:"):
        return text
    if value is None and text.strip() and not _NULL.fullmatch(text.strip()) and "\n" not in text.strip():
        return text
    return value


def read_value(text: str) -> Any:
    """The value of an option as typed on the command line: one scalar, a list, a mapping, or a text in quotes."""
    import yaml

    stripped = text.strip()
    pair = stripped[:1] + stripped[-1:] if len(stripped) > 1 else ""
    if pair in ("[]", "{}", '""', "''"):
        try:
            return load_yaml(stripped)
        except yaml.YAMLError:
            return text
    return _resolve(stripped) if stripped else text


def read_config(text: str, option: str) -> Any:
    """The value of an option that takes a part config: a mapping in YAML, or a name.

    Raises:
        ConfigError: the text is no YAML.
    """
    import yaml

    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {option} is no YAML: {text!r}.") from error


def _resolve(text: str) -> Any:
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    return _number(text) if _FLOAT.fullmatch(text) else text


def _number(text: str) -> float:
    number = float(text.replace(".inf", "inf").replace(".nan", "nan")) if "n" in text.lower() else float(text)
    return number if repr(number) == text or not math.isfinite(number) else Float(text)


@lru_cache(maxsize=1)
def _loader() -> Any:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own

    for tag, pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
        whole = re.compile(rf"(?:{pattern.pattern})$")
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", whole, None)
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"$"), [""])
    Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])
    Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _number(loader.construct_scalar(node)))
    return Loader


def as_text(value: Any) -> Any:
    """The text that a scalar was typed as; other values are themselves."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Float):
        return value.source
    return str(value) if isinstance(value, int | float | str) else value


def plain(value: Any) -> Any:
    """A copy without `Text` and `Float`."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else value
    return str(value) if isinstance(value, Text) else float(value) if isinstance(value, Float) else value


def unparsed(value: Any) -> Any:
    """A copy whose texts jsonargparse takes as they are."""
    if isinstance(value, Mapping):
        return {key: unparsed(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(unparsed(item) for item in value)
    return Text(value) if type(value) is str else value


def as_flow(value: Any) -> str:
    """YAML on one line, from which `load_yaml` reads the value again."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_flow(key)}: {as_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_flow(item) for item in value) + "]"
    if isinstance(value, Float):
        return value.source
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return json.dumps(value, ensure_ascii=False)
