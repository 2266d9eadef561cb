"""Names to classes: built-in parts, entry points of installed distributions, decorated classes, dotted paths.

Listing reads strings only; a class is imported when it is asked for, so one that fails to import harms nobody else.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from velm.plugins import PluginError, installed, load_plugins
from velm.specs import Spec, SpecError, parameters, path_of, split_spec, validated
from velm.version import __version__

__all__ = [
    "KINDS", "DuplicateNameError", "Entry", "PluginError", "Registry", "Spec", "SpecError", "UnknownNameError",
    "datasets", "decoders", "image_encoders", "load_plugins", "losses", "parameters", "split_spec", "text_encoders",
    "tokenizers",
]  # fmt: skip

T = TypeVar("T", bound=type)


class UnknownNameError(SpecError):
    """No part of that kind has that name."""


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
        found = [Entry(name, target, "velm", __version__) for name, target in self._builtin.items()]
        found += [Entry(name, path_of(cls), *_owner(cls.__module__)) for name, cls in self._decorated.items()]
        found += [Entry(*each) for each in installed(self.group)]
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
            owners = [e for e in self.entries() if e.name == name and e.target != path_of(cls)]
            if owners:
                mine = Entry(name, path_of(cls), *_owner(cls.__module__))
                raise DuplicateNameError(self._duplicate(name, [*owners, mine]))
            self._decorated[name] = cls
            return cls

        return decorate

    def find(self, name: str) -> tuple[Entry, dict[str, str]]:
        """The entry behind a name, and the `model_name` that a family member carries after its slash.

        Raises:
            UnknownNameError, DuplicateNameError.
        """
        if ":" in name and not name.startswith("hf/"):
            return Entry(name, name, *_owner(name)), {}
        entries = self.entries()
        claims = [entry for entry in entries if entry.name == name and not name.endswith("/*")]
        family, _, member = name.partition("/")
        if not claims and member and member != "*":
            claims = [entry for entry in entries if entry.name == f"{family}/*"]
        if not claims:
            raise UnknownNameError(self._unknown(name))
        if len({entry.target for entry in claims}) > 1:
            raise DuplicateNameError(self._duplicate(name, claims))
        entry = claims[-1]  # one class by two doors: '(no distribution)' sorts before whoever brings it
        return entry, {"model_name": member} if entry.name.endswith("/*") else {}

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
            raise PluginError(self._unimportable(name, entry, cause)) from cause
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
            SpecError: an option that does not exist, has the wrong type or is missing, before anything is built;
                or one that the constructor refuses with a ValueError.
        """
        name, options = split_spec(spec, self.kind)
        cls = self.get(name)
        accepted = parameters(cls)
        given = {**given, **self.find(name)[1]}
        handed = {key: value for key, value in given.items() if key in accepted and key not in options}
        typed = validated(cls, options, handed, f"{self.kind} {name!r}")
        try:
            return cls(**typed, **handed)
        except ValueError as error:
            if type(error) is not ValueError:  # a kind of its own (DataError, ...) says more than we can
                raise
            raise SpecError(f"The {self.kind} {name!r} cannot be built so: {error}") from error

    def _unknown(self, name: str) -> str:
        names = self.names()
        return (
            f"Unknown {self.kind} {name!r}.{_guess(name, names)} Available: {', '.join(names)}.\n"
            f'Own {self.kind}s: name: "{self._example}", an entry point in the group {self.group!r} of an installed '
            f"distribution, or plugins: [my_module] for a decorated class."
        )

    def _unimportable(self, name: str, entry: Entry, cause: Exception) -> str:
        why = f"cannot be imported: {type(cause).__name__}: {cause}."
        if entry.distribution.startswith("("):
            return (
                f"The {self.kind} {name!r} {why} No installed distribution brings it: see that "
                f"{entry.target.partition(':')[0]!r} is a module that Python finds from {Path.cwd()} or its search "
                f"path, and that the class is in it. Everything else goes on working."
            )
        return (
            f"The {self.kind} {name!r} ({entry.target}, from {entry.distribution} {entry.version}) {why} "
            f"Mend or uninstall {entry.distribution}; everything else goes on working."
        )

    def _duplicate(self, name: str, entries: list[Entry]) -> str:
        claims = sorted(f"{entry.target} ({entry.distribution})" for entry in entries)
        return (
            f"The {self.kind} name {name!r} is claimed by {' and by '.join(claims)}. "
            f"Rename one, uninstall one, or use the dotted path of the one you mean."
        )


def _guess(name: str, names: list[str]) -> str:
    """' Did you mean ...?', where a name is near; a family's members are not known, so theirs stays as it came."""
    stem, _, member = name.partition("/")
    near = difflib.get_close_matches(stem, [known.removesuffix("/*") for known in names], n=1)
    if not near:
        return ""
    meant = f"{near[0]}/{member.strip('*') or '<model>'}" if f"{near[0]}/*" in names else near[0]
    return f" Did you mean {meant!r}?"


def _owner(target: str) -> tuple[str, str]:
    """The distribution that brings a module, and its version; '(no distribution)' for a loose file."""
    top = target.partition(":")[0].partition(".")[0]
    owners = _packages(tuple(sys.path)).get(top, [])
    return (owners[0], importlib.metadata.version(owners[0])) if owners else ("(no distribution)", "")


@lru_cache(maxsize=1)
def _packages(search_path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Who brings which package; reads what every installed distribution has written down, which takes a second."""
    return importlib.metadata.packages_distributions()


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
        "decoder": "velm.encoders.decoder:DecoderTextEncoder",
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
        "shapes_questions": "velm.data.questions:ShapesQuestions",
        "shapes_stories": "velm.data.stories:ShapesStories",
        "csv": "velm.data.tables:CSV",
        "tsv": "velm.data.tables:TSV",
        "jsonl": "velm.data.tables:JSONL",
        "parquet": "velm.data.parquet:Parquet",
        "karpathy": "velm.data.karpathy:Karpathy",
        "folder": "velm.data.folder:Folder",
        "image_folder": "velm.data.image_folder:ImageFolder",
        "webdataset": "velm.data.webdataset:WebDataset",
        "hf/*": "velm.data.huggingface:HFDataset",
        "mixture": "velm.data.mixture:Mixture",
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
