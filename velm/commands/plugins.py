"""`velm plugins`: every name, its options, and the contract checks on it."""

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

#: What `velm plugins check` hands over in place of the data, where a constructor has an argument of that name.
TINY: dict[str, dict[str, int]] = {
    "image_encoders": {"vocab_size": 32, "pad_id": 0},
    "text_encoders": {"vocab_size": 32, "pad_id": 0},
    "decoders": {"vocab_size": 32, "pad_id": 0, "memory_dim": 16},
    "losses": {},
    "datasets": {},
    "tokenizers": {},
}
#: The decoder that a text encoder is handed which goes on from one.
TINY_DECODER = {"name": "transformer", "dim": 16, "depth": 2, "unimodal_depth": 1, "heads": 2}


def list_plugins() -> list[dict[str, str]]:
    """Every name: kind, name, target ('module:Class'), distribution, version. Imports no plugin and no torch."""
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
    """What one part is and which options it takes, from its signature and its docstrings.

    Args:
        kind: as in 'image encoder', 'image_encoder' or 'image_encoders'.
        name: a name, a member of a family (torchvision/resnet50) or the family (torchvision/*), or a dotted path.

    Raises:
        ConfigError: there is no such kind or name.
        PluginError: it cannot be imported; the message names its distribution and the cause.
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
                "given": _giver(key, entry.name, option),
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


def check_plugin(spec: str | Mapping[str, Any], kind: str | None = None, image_size: int | None = None) -> Report:
    """Build a part with a tiny vocabulary and memory, and look at every law of its contract.

    Args:
        spec: a name, a dotted path, or a mapping {name: ..., options}.
        kind: where the name exists in several kinds, the one that is meant.
        image_size: side of the images to try on an image encoder, in pixels; 64 when None.

    Raises:
        ConfigError: there is no such kind or name, or several kinds have it.
        PluginError: it cannot be imported.
    """
    name, options = split_config(spec)
    key, registry = _kind(kind) if kind else _kind_of(name)
    registry.get(name)  # what cannot be imported is told as such, with its owner
    from velm.testing import CHECKS

    given: dict[str, Any] = dict(TINY[key])
    known = {option: options.get(option, value) for option, value in given.items()}
    if key == "text_encoders" and "decoder" in parameters(registry.get(name)):
        given["decoder"] = KINDS["decoders"].build(TINY_DECODER, **TINY["decoders"])  # one, whose weights are its own
    if key == "image_encoders":
        known = {"image_size": image_size or 64}

    def build() -> Any:
        return registry.build({"name": name, **options}, **given)

    build.__qualname__ = name  # what the report is headed with where building fails
    return CHECKS[key](build, **known)


def main(argv: Sequence[str]) -> int:
    """Run `velm plugins`; 0 when all is well, 1 when a part has faults.

    Raises:
        ConfigError, PluginError: a part cannot be had; `velm` prints the message.
    """
    args = _parser().parse_args(argv)
    load_plugins(args.plugins.split(",") if "plugins" in args else ())
    if args.command == "show":
        shown = show_plugin(args.kind, args.name)
        print(json.dumps(shown, indent=2) if "json" in args else _page(shown))
    elif args.command == "check":
        report = check_plugin(_read(args.spec), args.kind, args.image_size)
        print(report)
        return 0 if report.ok else 1
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
        prog="velm plugins", description="List every name, its kind and who brought it.", parents=[reading]
    )
    commands = parser.add_subparsers(dest="command", metavar="{show,check}")
    show = commands.add_parser("show", help="a part's options with types, defaults and docs", parents=[reading])
    show.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    show.add_argument("name", metavar="NAME", help="as velm plugins lists it, or a dotted path pkg.module:Class")
    check = commands.add_parser("check", help="build a part, look at every law of its contract", parents=[loading])
    check.add_argument("spec", metavar="SPEC", help="a name, a dotted path, or a mapping '{name: vit, depth: 2}'")
    check.add_argument("--kind", help=f"which is meant, where several have the name: {', '.join(KINDS)}")
    check.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images to try (default 64)")
    return parser


def _read(spec: str) -> str | dict[str, Any]:
    """A spec as typed: YAML (and so JSON) where it starts like a mapping, else a name."""
    if not spec.lstrip().startswith("{"):
        return spec
    import yaml

    try:
        read: dict[str, Any] = yaml.safe_load(spec)
    except yaml.YAMLError as error:
        raise ConfigError(f"{spec} is neither YAML nor JSON: {error}. Write: '{{name: vit, depth: 2}}'.") from error
    return read


def _kind(kind: str) -> tuple[str, Registry]:
    key = kind.strip().lower().replace(" ", "_").replace("-", "_")
    key = {"loss": "losses"}.get(key, key if key.endswith("s") else key + "s")
    if key not in KINDS:
        raise ConfigError(f"Unknown kind {kind!r}. Kinds: {', '.join(KINDS)}.")
    return key, KINDS[key]


def _kind_of(name: str) -> tuple[str, Registry]:
    """The only kind that has this name; for a dotted path the one whose contract the class derives from."""
    if ":" in name and not name.startswith("hf/"):
        return _kind_of_class(name, next(iter(KINDS.values())).get(name))
    found = []
    for key, registry in KINDS.items():
        try:
            registry.find(name)
        except UnknownNameError:
            continue
        found.append(key)
    if not found:
        names = sorted({known for registry in KINDS.values() for known in registry.names()})
        guess = did_you_mean(name, [known.removesuffix("/*") for known in names])
        raise UnknownNameError(f"Nothing is named {name!r}.{guess} Names: {', '.join(names)}. Or pkg.module:Class.")
    if len(found) > 1:
        kinds = " and ".join(KINDS[key].kind for key in found)
        raise ConfigError(f"{name!r} is the name of {kinds}. Say which: --kind {found[0]}.")
    return found[0], KINDS[found[0]]


def _kind_of_class(name: str, cls: type) -> tuple[str, Registry]:
    from velm.testing import BASES

    for key, base in BASES.items():
        if issubclass(cls, base):
            return key, KINDS[key]
    bases = ", ".join(f"velm.{base.__name__}" for base in BASES.values())
    raise ConfigError(
        f"{name} derives from none of {bases}, so its kind is not known. Say it: --kind {next(iter(KINDS))}."
    )


def _giver(key: str, entry_name: str, option: str) -> str | None:
    """Who hands an option over when the spec leaves it out; None where only the spec does."""
    if option == "model_name" and entry_name.endswith("/*"):
        return "the part of the name after the slash"
    if key == "text_encoders" and option == "decoder":
        return "the model"
    return {"memory_dim": "the encoders"}.get(option, "the tokenizer") if option in TINY[key] else None


def _documented(cls: type) -> dict[str, str]:
    """Each option's line under `Args:`, the class's own before those of the classes it derives from."""
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
    """The value as JSON can hold it."""
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
