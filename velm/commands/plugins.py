"""`velm plugins`: list every part, show its options, check its contract."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from velm.errors import ConfigError, UnknownNameError
from velm.registry import KINDS, Registry, load_plugins, parameters, split_config
from velm.util import did_you_mean

if TYPE_CHECKING:
    from velm.testing import Report

__all__ = ["check_plugin", "list_plugins", "main", "show_plugin"]

#: Constructor arguments that `velm plugins check` passes in place of the tokenizer and the encoders.
TINY: dict[str, dict[str, int]] = {
    "image_encoders": {"vocab_size": 32, "pad_id": 0},
    "text_encoders": {"vocab_size": 32, "pad_id": 0},
    "decoders": {"vocab_size": 32, "pad_id": 0, "memory_dim": 16},
    "losses": {},
    "datasets": {},
    "tokenizers": {},
    "balancing_policies": {},
}
#: The decoder of a text encoder that shares one.
TINY_DECODER = {"name": "transformer", "dim": 16, "depth": 2, "unimodal_depth": 1, "heads": 2}


def list_plugins() -> list[dict[str, str]]:
    """Kind, name, target ('module:Class'), distribution and version of every part. Imports no plugin and no torch."""
    return [
        {
            "kind": key,
            "name": entry.name,
            "target": entry.target,
            "distribution": entry.distribution,
            "version": entry.version,
        }
        for key, registry in KINDS.items()
        for entry in registry.entries()
    ]


def show_plugin(kind: str, name: str) -> dict[str, Any]:
    """Summary and options of a part, from its signature and its docstrings.

    Args:
        kind: 'image encoder', 'image_encoder' or 'image_encoders'.
        name: a name, a member of a family (torchvision/resnet50), a family (torchvision/*), or a dotted path.

    Raises:
        ConfigError: an unknown kind or name.
        PluginError: the part cannot be imported; the message names its distribution and the cause.
    """
    key, registry = _kind(kind)
    name = name.replace("/*", "/any")
    entry, _ = registry.find(name)
    cls = registry.get(name)
    docs = _documented(cls)
    options = []
    for option, parameter in parameters(cls).items():
        required = parameter.default is parameter.empty
        options.append(
            {
                "name": option,
                "type": _type(parameter),
                "required": required,
                "default": None if required else _plain(parameter.default),
                "given": _source(key, entry.name, option),
                "doc": docs.get(option, ""),
            }
        )
    return {
        "kind": key,
        "name": entry.name,
        "target": entry.target,
        "distribution": entry.distribution,
        "version": entry.version,
        "summary": _summary(cls),
        "options": options,
    }


def check_plugin(config: str | Mapping[str, Any], kind: str | None = None, image_size: int | None = None) -> Report:
    """Build a part with a tiny vocabulary and memory, and check every law of its contract.

    Args:
        config: a name, a dotted path, or a part config {name: ..., options}.
        kind: the kind of part, for a name that several kinds have.
        image_size: side of the images for an image encoder, in pixels; None: 64.

    Raises:
        ConfigError: an unknown kind or name, a name of several kinds, or a kind without a contract check.
        PluginError: the part cannot be imported.
    """
    name, options = split_config(config)
    key, registry = _kind(kind) if kind else _kind_of(name)
    registry.get(name)  # raises PluginError with the owner of a broken plugin
    from velm.testing import CHECKS

    if key not in CHECKS:
        raise ConfigError(f"There is no contract check for a {registry.kind}. Kinds with a check: {', '.join(CHECKS)}.")
    arguments: dict[str, Any] = dict(TINY[key])
    check_options = {option: options.get(option, value) for option, value in arguments.items()}
    if key == "text_encoders" and "decoder" in parameters(registry.get(name)):
        arguments["decoder"] = KINDS["decoders"].build(TINY_DECODER, **TINY["decoders"])
    if key == "image_encoders":
        check_options = {"image_size": image_size or 64}

    def build() -> Any:
        return registry.build({"name": name, **options}, **arguments)

    build.__qualname__ = name  # title of the report if building fails
    return CHECKS[key](build, **check_options)


def main(argv: Sequence[str]) -> int:
    """Run `velm plugins`: 0, or 1 if a part violates its contract.

    Raises:
        ConfigError, PluginError: the part is unknown or cannot be imported; `velm` prints the message.
    """
    args = _parser().parse_args(argv)
    load_plugins(args.plugins.split(",") if "plugins" in args else ())
    if args.command == "show":
        shown = show_plugin(args.kind, args.name)
        print(json.dumps(shown, indent=2) if "json" in args else _page(shown))
    elif args.command == "check":
        from velm.findings import as_dict

        report = check_plugin(_read(args.part), args.kind, args.image_size)
        code = 0 if report.ok else 1
        print(json.dumps(as_dict(report.findings, code), indent=2) if "json" in args else report)
        return code
    else:
        rows = list_plugins()
        print(json.dumps(rows, indent=2) if "json" in args else _table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    loading = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    loading.add_argument("--plugins", metavar="A,B.py", help="modules or .py files whose decorators register parts")
    reading = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, parents=[loading])
    reading.add_argument("--json", action="store_true", help="JSON instead of text")
    parser = argparse.ArgumentParser(
        prog="velm plugins", description="List every part: its name, kind and distribution.", parents=[reading]
    )
    commands = parser.add_subparsers(dest="command", metavar="{show,check}")
    show = commands.add_parser("show", help="a part's options with types, defaults and docs", parents=[reading])
    show.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    show.add_argument("name", metavar="NAME", help="as velm plugins lists it, or a dotted path pkg.module:Class")
    check = commands.add_parser("check", help="build a part, check every law of its contract", parents=[reading])
    check.add_argument("part", metavar="PART", help="a name, a dotted path, or a part config '{name: vit, depth: 2}'")
    check.add_argument("--kind", help=f"for a name that several kinds have: {', '.join(KINDS)}")
    check.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images (default 64)")
    return parser


def _read(text: str) -> str | dict[str, Any]:
    """A part config from YAML or JSON if the text starts with a brace, else the text itself as a name."""
    if not text.lstrip().startswith("{"):
        return text
    import yaml

    try:
        config: dict[str, Any] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text} is neither YAML nor JSON: {error}. Write: '{{name: vit, depth: 2}}'.") from error
    return config


def _kind(kind: str) -> tuple[str, Registry]:
    key = kind.strip().lower().replace(" ", "_").replace("-", "_")
    plurals = {registry.kind.replace(" ", "_"): plural for plural, registry in KINDS.items()}
    key = plurals.get(key, key)
    if key not in KINDS:
        raise ConfigError(f"Unknown kind {kind!r}. Kinds: {', '.join(KINDS)}.")
    return key, KINDS[key]


def _kind_of(name: str) -> tuple[str, Registry]:
    """The only kind that has this name; for a dotted path, the kind of the base class."""
    if ":" in name and not name.startswith("hf/"):
        return _kind_of_class(name, next(iter(KINDS.values())).get(name))
    keys = []
    for key, registry in KINDS.items():
        try:
            registry.find(name)
        except UnknownNameError:
            continue
        keys.append(key)
    if not keys:
        names = sorted({known for registry in KINDS.values() for known in registry.names()})
        guess = did_you_mean(name, [known.removesuffix("/*") for known in names])
        raise UnknownNameError(f"Nothing is named {name!r}.{guess} Names: {', '.join(names)}. Or pkg.module:Class.")
    if len(keys) > 1:
        kinds = " and ".join(KINDS[key].kind for key in keys)
        raise ConfigError(f"{name!r} is the name of {kinds}. Give its kind: --kind {keys[0]}.")
    return keys[0], KINDS[keys[0]]


def _kind_of_class(name: str, cls: type) -> tuple[str, Registry]:
    from velm.testing import BASES

    for key, base in BASES.items():
        if issubclass(cls, base):
            return key, KINDS[key]
    bases = ", ".join(f"velm.{base.__name__}" for base in BASES.values())
    raise ConfigError(
        f"{name} derives from none of {bases}, so its kind is unknown. Give it: --kind {next(iter(KINDS))}."
    )


def _source(key: str, entry_name: str, option: str) -> str | None:
    """What provides an option that the part config omits; None: nothing."""
    if option == "model_name" and entry_name.endswith("/*"):
        return "the part of the name after the slash"
    if key == "text_encoders" and option == "decoder":
        return "the model"
    return {"memory_dim": "the encoders"}.get(option, "the tokenizer") if option in TINY[key] else None


def _documented(cls: type) -> dict[str, str]:
    """The docs of each option under `Args:`; a class overrides its bases."""
    import docstring_parser

    docs: dict[str, str] = {}
    for owner in cls.__mro__[:-1]:
        for text in (owner.__doc__, owner.__dict__.get("__init__", owner).__doc__):
            parsed = docstring_parser.parse(text or "", style=docstring_parser.DocstringStyle.GOOGLE)
            for param in parsed.params:
                docs.setdefault(param.arg_name, " ".join((param.description or "").split()))
    return docs


def _summary(cls: type) -> str:
    paragraph = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def _type(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return "anything"
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _plain(value: Any) -> Any:
    """The value as JSON types."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _table(rows: list[dict[str, str]]) -> str:
    cells = [("KIND", "NAME", "DISTRIBUTION", "TARGET")]
    cells += [(r["kind"], r["name"], f"{r['distribution']} {r['version']}".rstrip(), r["target"]) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in cells)


def _page(shown: dict[str, Any]) -> str:
    import textwrap

    lines = [
        f"{shown['name']}  ({shown['kind']}, {shown['target']}, from {shown['distribution']} {shown['version']})",
        *textwrap.wrap(shown["summary"], 100, initial_indent="  ", subsequent_indent="  "),
        "",
        "options:" if shown["options"] else "no options",
    ]
    for option in shown["options"]:
        default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
        if option["given"]:
            default = f"from {option['given']}" + ("" if option["required"] else f", else {default}")
        lines.append(f"  {option['name']}: {option['type']}  ({default})")
        lines += textwrap.wrap(option["doc"], 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
