"""`Registry`: the names of one kind of part, from VELM itself, entry points, decorators and dotted paths.

Listing names imports nothing; a class is imported when it is requested, so a broken plugin affects nobody else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from velm.errors import ConfigError, DuplicateNameError, PluginError, UnknownNameError
from velm.registry.options import PartConfig, as_typed, parameters, path_of, split_config, validated
from velm.registry.plugins import installed
from velm.registry.scalars import plain
from velm.util import did_you_mean
from velm.version import __version__

__all__ = ["Entry", "Registry"]

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered name: `target` is 'module:Class', `distribution` the distribution that provides it."""

    name: str
    target: str
    distribution: str
    version: str


class Registry:
    """The parts of one kind.

    Args:
        kind: the kind in words, such as 'image encoder'.
        group: the entry-point group, such as 'velm.image_encoders'.
        builtin: VELM's own parts, {name: 'module:Class'}; a name that ends in '/*' is a family.
        contract: 'module:Class' of the base class that every part of the kind has.
        example: a dotted path for error messages.
    """

    def __init__(
        self, kind: str, group: str, builtin: Mapping[str, str], *, contract: str = "torch.nn:Module", example: str
    ) -> None:
        self.kind = kind
        self.group = group
        self.contract = contract
        self._example = example
        self._builtin = dict(builtin)
        self._decorated: dict[str, type] = {}

    def entries(self) -> list[Entry]:
        """Every name, sorted; one entry for each owner where several claim a name. Imports nothing."""
        entries = [Entry(name, target, "velm", __version__) for name, target in self._builtin.items()]
        entries += [Entry(name, path_of(cls), *_owner(cls.__module__)) for name, cls in self._decorated.items()]
        entries += [Entry(*each) for each in installed(self.group)]
        return sorted(set(entries), key=lambda entry: (entry.name, entry.distribution))

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
        entry = claims[-1]  # one class registered twice: '(no distribution)' sorts before its distribution
        return entry, {"model_name": member} if entry.name.endswith("/*") else {}

    def get(self, name: str) -> type:
        """The class behind a name, imported now.

        Raises:
            UnknownNameError, DuplicateNameError.
            PluginError: importing it failed.
        """
        return self._load(name, self.find(name)[0])

    def _load(self, name: str, entry: Entry) -> type:
        if entry.name in self._decorated:
            return self._decorated[entry.name]
        try:
            target = import_path(entry.target)
        except Exception as cause:
            raise PluginError(self._unimportable(name, entry, cause)) from cause
        if not inspect.isclass(target):
            raise PluginError(f"The {self.kind} {name!r} names {entry.target}, which is not a class but {target!r}.")
        return target

    def build(self, config: PartConfig, **context: Any) -> Any:
        """Build a part from its config.

        Args:
            config: a name, or {'name': ..., options}.
            **context: values that only the builder knows (vocab_size, memory_dim, ...); each is passed only where the
                constructor has an argument of that name and the config does not set it.

        Raises:
            ConfigError: an option does not exist, has the wrong type or is missing, before anything is built; or the
                constructor raised a ValueError.
        """
        name, options = split_config(config, self.kind)
        entry, family = self.find(name)
        cls = self._load(name, entry)
        accepted = parameters(cls)
        passed = {k: v for k, v in {**context, **family}.items() if k in accepted and k not in options}
        typed = validated(cls, options, passed, f"{self.kind} {name!r}")
        try:
            return cls(**typed, **passed)
        except ValueError as error:
            if type(error) is not ValueError:  # a more specific error (DataError, ...) has the better message
                raise
            raise ConfigError(f"The {self.kind} {name!r} cannot be built: {error}") from error

    def as_typed(self, config: PartConfig) -> dict[str, Any]:
        """A part config, to be stored: with the text that was typed where an option takes text.

        Raises:
            UnknownNameError, DuplicateNameError, PluginError: the class cannot be found.
        """
        name, options = split_config(config, self.kind)
        return plain({"name": name, **as_typed(self.get(name), options)})

    def _unknown(self, name: str) -> str:
        names = self.names()
        return (
            f"Unknown {self.kind} {name!r}.{_suggest(name, names)} Available: {', '.join(names)}.\n"
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


def _suggest(name: str, names: list[str]) -> str:
    """' Did you mean ...?'; of a family's member only the family's name is corrected."""
    stem, _, member = name.partition("/")
    completed = {n.removesuffix("/*"): n.replace("*", member.strip("*") or "<model>") for n in names}
    suggestion = did_you_mean(stem, completed)
    for known, whole in completed.items():
        suggestion = suggestion.replace(repr(known), repr(whole))
    return suggestion


def import_path(path: str) -> Any:
    """The object behind 'module:attribute', imported now; raises whatever the import raises."""
    module_name, _, attribute = path.partition(":")
    target: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        target = getattr(target, part)
    return target


def _owner(target: str) -> tuple[str, str]:
    """The distribution that provides a module, and its version; '(no distribution)' for a loose file."""
    top = target.partition(":")[0].partition(".")[0]
    owners = _packages(tuple(sys.path)).get(top, [])
    return (owners[0], importlib.metadata.version(owners[0])) if owners else ("(no distribution)", "")


@lru_cache(maxsize=1)
def _packages(search_path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """The distributions of every top-level package; reads all installed metadata, which takes a second."""
    return importlib.metadata.packages_distributions()
