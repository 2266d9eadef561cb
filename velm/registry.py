"""Names to classes: built-in parts, entry points of installed distributions, decorated classes, dotted paths.

Listing reads strings only; a class is imported when it is asked for, so one that fails to import harms nobody else.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", bound=type)
Spec = str | Mapping[str, Any]


class SpecError(ValueError):
    """A spec that cannot be built: an option unknown, ill-typed or missing."""


class UnknownNameError(SpecError):
    """No part of that kind has that name."""


class PluginError(ImportError):
    """A part is known by name but cannot be imported; the message names its distribution and the cause."""


class DuplicateNameError(ValueError):
    """Two owners claim one name; the message names both."""


@dataclass(frozen=True)
class Entry:
    """A name and where it leads: `target` is 'module:Class', `distribution` who brought it."""

    name: str
    target: str
    distribution: str
    version: str


class Registry:
    """The parts of one kind. `kind` is in words ('image encoder'), `group` the entry-point group."""

    def __init__(self, kind: str, group: str, example: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._example = example
        self._builtin = dict(builtin)
        self._decorated: dict[str, type] = {}

    def entries(self) -> list[Entry]:
        """Every name, sorted, from all three doors; a duplicate stands once for each owner. Imports nothing."""
        from velm import __version__

        found = [Entry(name, target, "velm", __version__) for name, target in self._builtin.items()]
        found += [Entry(name, _path_of(cls), *_owner(cls)) for name, cls in self._decorated.items()]
        for point in importlib.metadata.entry_points(group=self.group):
            owner = point.dist
            found.append(Entry(point.name, point.value, owner.name if owner else "?", owner.version if owner else "?"))
        return sorted(set(found), key=lambda entry: (entry.name, entry.distribution))

    def names(self) -> list[str]:
        """Every name once, sorted; families end in '/*'."""
        return sorted({entry.name for entry in self.entries()})

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that gives a class a name in this registry.

        Raises:
            DuplicateNameError: another class already has the name.
        """

        def decorate(cls: T) -> T:
            owners = [e for e in self.entries() if e.name == name and e.target != _path_of(cls)]
            if owners:
                claims = [f"{entry.target} ({entry.distribution})" for entry in owners]
                raise DuplicateNameError(self._duplicate(name, [*claims, f"{_path_of(cls)} ({_owner(cls)[0]})"]))
            self._decorated[name] = cls
            return cls

        return decorate

    def find(self, name: str) -> tuple[Entry, dict[str, str]]:
        """The entry behind a name, and the `model_name` that a family member carries after its slash.

        Raises:
            UnknownNameError, DuplicateNameError.
        """
        if ":" in name and not name.startswith("hf/"):
            return Entry(name, name, _distribution_of(name), _version_of(name)), {}
        entries = self.entries()
        claims = [entry for entry in entries if entry.name == name and not name.endswith("/*")]
        family, _, member = name.partition("/")
        if not claims and member and member != "*":
            claims = [entry for entry in entries if entry.name == f"{family}/*"]
        if not claims:
            raise UnknownNameError(self._unknown(name))
        if len({entry.target for entry in claims}) > 1 or len(claims) > 1:
            raise DuplicateNameError(self._duplicate(name, [f"{e.target} ({e.distribution})" for e in claims]))
        return claims[0], {"model_name": member} if claims[0].name.endswith("/*") else {}

    def get(self, name: str) -> type:
        """The class behind a name, imported now.

        Raises:
            UnknownNameError, DuplicateNameError.
            PluginError: importing it failed.
        """
        entry, _ = self.find(name)
        if entry.name in self._decorated:
            return self._decorated[entry.name]
        module_name, _, attribute = entry.target.partition(":")
        try:
            module = importlib.import_module(module_name)
            target: Any = module
            for part in attribute.split("."):
                target = getattr(target, part)
        except Exception as cause:
            raise PluginError(
                f"The {self.kind} {name!r} ({entry.target}, from {entry.distribution} {entry.version}) cannot be "
                f"imported: {type(cause).__name__}: {cause}. Mend or uninstall {entry.distribution}; "
                f"everything else goes on working."
            ) from cause
        if not inspect.isclass(target):
            raise PluginError(f"The {self.kind} {name!r} leads to {entry.target}, which is no class but {target!r}.")
        return target

    def build(self, spec: Spec, **given: Any) -> Any:
        """Build a part from its spec.

        Args:
            spec: a name, or {'name': ..., options}.
            **given: what only the builder knows (vocab_size, memory_dim, ...); each is handed over only where the
                constructor has an argument of that name and the spec does not set it.

        Raises:
            SpecError: an option that does not exist, has the wrong type or is missing, before anything is built.
        """
        name, options = split_spec(spec, self.kind)
        cls = self.get(name)
        accepted = parameters(cls)
        given = {**given, **self.find(name)[1]}
        handed = {key: value for key, value in given.items() if key in accepted and key not in options}
        return cls(**_validated(cls, options, handed, f"{self.kind} {name!r}"), **handed)

    def _unknown(self, name: str) -> str:
        names = self.names()
        near = difflib.get_close_matches(name, [n.removesuffix("/*") for n in names], n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return (
            f"Unknown {self.kind} {name!r}.{guess} Available: {', '.join(names)}.\n"
            f'Own {self.kind}s: name: "{self._example}", an entry point in the group {self.group!r} of an installed '
            f"distribution, or plugins: [my_module] for a decorated class."
        )

    def _duplicate(self, name: str, claims: list[str]) -> str:
        return (
            f"The {self.kind} name {name!r} is claimed by {' and by '.join(sorted(claims))}. "
            f"Rename one, uninstall one, or use the dotted path of the one you mean."
        )


def split_spec(spec: Spec, kind: str = "part") -> tuple[str, dict[str, Any]]:
    """The name and the options of a spec; a class in place of the name stands for its dotted path."""
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not spec.get("name"):
        raise SpecError(f"The spec of a {kind} is a name or a mapping with a 'name', e.g. {{name: ...}}; got {spec!r}.")
    name, options = spec["name"], {key: value for key, value in spec.items() if key != "name"}
    return (_path_of(name) if inspect.isclass(name) else str(name)), options


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's arguments by name, without self."""
    signature = inspect.signature(cls)
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in signature.parameters.items() if p.kind not in skipped}


def load_plugins(plugins: Iterable[str]) -> None:
    """Import modules or .py files whose decorators register parts. Importing one twice does nothing.

    Raises:
        PluginError: one cannot be found or fails; the message names it and the cause.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _import_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except Exception as cause:
            raise PluginError(
                f"The plugin {plugin!r} cannot be imported: {type(cause).__name__}: {cause}. `plugins:` takes names of "
                f"modules that Python can import from {Path.cwd()} or its search path, and paths of .py files."
            ) from cause


def _import_file(path: Path) -> None:
    resolved, name = path.resolve(), f"velm_plugin_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(resolved):
        return
    if not resolved.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module_spec = importlib.util.spec_from_file_location(name, resolved)
    assert module_spec is not None and module_spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _validated(cls: type, options: dict[str, Any], handed: dict[str, Any], what: str) -> dict[str, Any]:
    accepted = {key: p for key, p in parameters(cls).items() if key not in handed}
    for key in options:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise SpecError(f"The {what} has no option {key!r}.{guess} Its options: {', '.join(accepted) or 'none'}.")
    missing = [key for key, p in accepted.items() if p.default is p.empty and key not in options]
    if missing:
        raise SpecError(f"The {what} needs {', '.join(missing)}. Its options: {', '.join(accepted)}.")
    return _typed(cls, options, set(accepted) - set(options) | set(handed), what)


def _typed(cls: type, options: dict[str, Any], skip: set[str], what: str) -> dict[str, Any]:
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
            raise SpecError(
                f"The option {key!r} of the {what} takes {expected}; got {value!r} ({type(value).__name__})."
            ) from error
    return typed


def _path_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _owner(cls: type) -> tuple[str, str]:
    return _distribution_of(cls.__module__), _version_of(cls.__module__)


def _distribution_of(target: str) -> str:
    """The distribution that brings a module, or '(no distribution)' for a loose file."""
    top = target.partition(":")[0].partition(".")[0]
    owners = importlib.metadata.packages_distributions().get(top, [])
    return owners[0] if owners else "(no distribution)"


def _version_of(target: str) -> str:
    owner = _distribution_of(target)
    return "" if owner.startswith("(") else importlib.metadata.version(owner)


image_encoders = Registry(
    "image encoder",
    "velm.image_encoders",
    "my_pkg.my_module:MyEncoder",
    {
        "cnn": "velm.encoders.cnn:CNNEncoder",
        "vit": "velm.encoders.vit:ViTEncoder",
        "torchvision/*": "velm.encoders.torchvision:TorchvisionEncoder",
        "timm/*": "velm.encoders.timm:TimmEncoder",
        "hf/*": "velm.encoders.huggingface:HFImageEncoder",
    },
)
text_encoders = Registry(
    "text encoder",
    "velm.text_encoders",
    "my_pkg.my_module:MyEncoder",
    {
        "rnn": "velm.encoders.rnn:RNNEncoder",
        "transformer": "velm.encoders.transformer:TransformerEncoder",
        "hf/*": "velm.encoders.huggingface:HFTextEncoder",
    },
)
decoders = Registry(
    "decoder",
    "velm.decoders",
    "my_pkg.my_module:MyDecoder",
    {
        "rnn": "velm.decoders.rnn:RNNDecoder",
        "transformer": "velm.decoders.transformer:TransformerDecoder",
        "hf/*": "velm.decoders.huggingface:HFDecoder",
    },
)
losses = Registry(
    "loss",
    "velm.losses",
    "my_pkg.my_module:MyLoss",
    {
        "contrastive": "velm.losses.alignment:ContrastiveLoss",
        "sigmoid": "velm.losses.alignment:SigmoidLoss",
        "triplet": "velm.losses.alignment:TripletLoss",
        "captioning": "velm.losses.captioning:CaptioningLoss",
    },
)
datasets = Registry(
    "dataset",
    "velm.datasets",
    "my_pkg.my_module:MyDataset",
    {
        "shapes": "velm.data.shapes:Shapes",
        "csv": "velm.data.tables:CSV",
        "tsv": "velm.data.tables:TSV",
        "jsonl": "velm.data.tables:JSONL",
        "parquet": "velm.data.tables:Parquet",
        "karpathy": "velm.data.karpathy:Karpathy",
        "folder": "velm.data.folder:Folder",
    },
)
tokenizers = Registry(
    "tokenizer",
    "velm.tokenizers",
    "my_pkg.my_module:MyTokenizer",
    {
        "word": "velm.data.tokenizers:WordTokenizer",
        "bpe": "velm.data.tokenizers:BPETokenizer",
        "byte": "velm.data.tokenizers:ByteTokenizer",
        "hf/*": "velm.data.tokenizers:HFTokenizer",
    },
)
KINDS: dict[str, Registry] = {
    "image_encoders": image_encoders,
    "text_encoders": text_encoders,
    "decoders": decoders,
    "losses": losses,
    "datasets": datasets,
    "tokenizers": tokenizers,
}
