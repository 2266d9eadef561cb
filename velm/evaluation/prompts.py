"""Templates and class names of zero-shot classification: typed, read from a file, or from an installed open_clip.

    templates.txt              one a line, {} or {c} for the class
    templates.json             a list of them
    templates.json#cifar10     the list under a key, as in CLIP_benchmark's en_zeroshot_classification_templates.json
    open_clip:imagenet         the 80 of OpenAI for ImageNet; open_clip:simple: the best 7 of them

Class names are read from the same layouts, and from a JSON mapping of folders to names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velm.errors import DataError, MissingPackageError
from velm.util import did_you_mean

__all__ = ["TYPED", "ClassNames", "Templates", "read_class_names", "read_templates"]

TYPED = "typed"
"""The source of templates and names that come from no file."""
OPEN_CLIP = "open_clip:"
_TEMPLATES = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
_CLASS_NAMES = {"imagenet": "IMAGENET_CLASSNAMES"}


@dataclass(frozen=True)
class Templates:
    """Prompts with one {} for the class.

    Attributes:
        texts: at least one; `{c}`, as CLIP_benchmark writes it, becomes `{}`.
        source: where they come from, as it was typed.

    Raises:
        DataError: there is none, or one has not exactly one place for the class.
    """

    texts: tuple[str, ...]
    source: str = TYPED

    def __post_init__(self) -> None:
        texts = tuple(text.replace("{c}", "{}") for text in self.texts)
        wrong = [text for text in texts if text.count("{}") != 1]
        if wrong or not texts:
            where = "" if self.source == TYPED else f"{self.source}: "
            raise DataError(
                f"{where}templates are prompts with one {{}} for the class, such as 'a photo of a {{}}.'; got "
                f"{repr(wrong[0]) if wrong else 'none'}."
            )
        object.__setattr__(self, "texts", texts)

    @classmethod
    def of(cls, templates: Templates | Sequence[str]) -> Templates:
        """Templates as they are, or of typed texts."""
        return templates if isinstance(templates, Templates) else cls(tuple(templates))

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the texts, one a line."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:12]

    def prompts(self, names: Sequence[str]) -> list[str]:
        """Every name in every template, template by template for each name."""
        return [text.replace("{}", name) for name in names for text in self.texts]


@dataclass(frozen=True)
class ClassNames:
    """The words for the classes of a dataset.

    Attributes:
        names: by folder (or by the name that the dataset gives the class); or a list in the order of the sorted
            folders, in the dataset's own order where it has no folders.
        source: where they come from, as it was typed.
    """

    names: Mapping[str, str] | Sequence[str]
    source: str = TYPED

    @classmethod
    def of(cls, names: ClassNames | Mapping[str, str] | Sequence[str]) -> ClassNames:
        """Class names as they are, or typed ones."""
        return names if isinstance(names, ClassNames) else cls(names)

    def words(self, classes: Sequence[str], folders: Sequence[str] | None = None) -> list[str]:
        """The words of each class.

        Args:
            classes: C names of the dataset.
            folders: the folder of each; None: the dataset has none.

        Raises:
            DataError: a class has no name, or there are not C names.
        """
        keys = list(classes if folders is None else folders)
        if isinstance(self.names, Mapping):
            return [self._of_class(*each) for each in zip(keys, classes, strict=True)]
        if len(self.names) != len(keys):
            raise DataError(
                f"{self.source} has {len(self.names)} class names, and the dataset has {len(keys)} classes "
                f"({', '.join(keys[:3])}, ...). Give one name per class, in the order of the sorted folders, or a JSON "
                f"mapping {{folder: name}}, which may have more."
            )
        order = range(len(keys)) if folders is None else sorted(range(len(keys)), key=keys.__getitem__)
        names = dict(zip(order, self.names, strict=True))
        return [names[index] for index in range(len(keys))]

    def _of_class(self, key: str, name: str) -> str:
        assert isinstance(self.names, Mapping)
        for each in (key, name):
            if each in self.names:
                return self.names[each]
        raise DataError(
            f"{self.source} has no name for the class {key!r}.{did_you_mean(key, self.names)} Give it one, or a list "
            f"in the order of the sorted folders."
        )


def read_templates(source: str) -> Templates:
    """The templates of a file, or of a set of open_clip.

    Args:
        source: FILE, FILE#KEY, open_clip:imagenet or open_clip:simple.

    Raises:
        DataError: the file cannot be read, has another layout, or a template has no {}.
        MissingPackageError: open_clip is not installed.
    """
    if source.startswith(OPEN_CLIP):
        functions = _open_clip(source, _TEMPLATES, "--templates")
        return Templates(tuple(function("{}") for function in functions), source)
    content = _read(source, "--templates")
    if isinstance(content, Mapping):
        raise DataError(_needs_key(source, content, "--templates"))
    return Templates(tuple(_texts(content, source, "--templates", "templates")), source)


def read_class_names(source: str) -> ClassNames:
    """The class names of a file, or of a set of open_clip.

    Args:
        source: FILE, FILE#KEY or open_clip:imagenet.

    Raises:
        DataError: the file cannot be read or has another layout.
        MissingPackageError: open_clip is not installed.
    """
    if source.startswith(OPEN_CLIP):
        return ClassNames(tuple(_open_clip(source, _CLASS_NAMES, "--class_names")), source)
    content = _read(source, "--class_names")
    if isinstance(content, Mapping):
        if any(isinstance(value, list | Mapping) for value in content.values()):
            raise DataError(_needs_key(source, content, "--class_names"))
        values = _texts(list(content.values()), source, "--class_names", "class names")
        return ClassNames(dict(zip(content, values, strict=True)), source)
    return ClassNames(tuple(_texts(content, source, "--class_names", "class names")), source)


def _open_clip(source: str, sets: Mapping[str, str], option: str) -> Sequence[Any]:
    name = source.removeprefix(OPEN_CLIP)
    if name not in sets:
        allowed = " or ".join(f"{OPEN_CLIP}{each}" for each in sets)
        raise DataError(f"{option} {source}: open_clip has no set {name!r}; use {allowed}, or a file.")
    try:
        from open_clip import zero_shot_metadata
    except ImportError as error:
        raise MissingPackageError(
            f"{option} {source} reads the prompts that open_clip installs, and it is not installed: "
            f"pip install 'velm[open_clip]'. A file with one a line needs no package."
        ) from error
    found: Sequence[Any] = getattr(zero_shot_metadata, sets[name])
    return found


def _read(source: str, option: str) -> Any:
    """The lines of a file, or the content of a .json file, below the key after '#'."""
    path, _, key = (source, "", "") if Path(source).expanduser().is_file() else source.partition("#")
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise DataError(f"{option} {source}: cannot read the file {path!r}: {cause}.") from error
    if not path.endswith(".json"):
        if key:
            raise DataError(f"{option} {source}: {path!r} is no .json file, so it has no key {key!r}.")
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{option} {source}: {path!r} is not JSON: {error}.") from error
    if not key:
        return content
    if not isinstance(content, Mapping) or key not in content:
        keys = list(content) if isinstance(content, Mapping) else []
        listed = ", ".join(keys[:20]) or f"no keys, it is a {type(content).__name__}"
        raise DataError(f"{option} {source}: {path!r} has no key {key!r}.{did_you_mean(key, keys)} It has: {listed}.")
    return content[key]


def _needs_key(source: str, content: Mapping[str, Any], option: str) -> str:
    keys = list(content)
    if not keys:
        return f"{option} {source}: the file is empty."
    return (
        f"{option} {source}: the file has a list for each of {len(keys)} datasets; choose one: {option} "
        f"'{source.partition('#')[0]}#{keys[0]}'. It has: {', '.join(keys[:20])}."
    )


def _texts(content: Any, source: str, option: str, what: str) -> list[str]:
    """The content if it is a list of texts that are not empty."""
    wrong = [x for x in content if not _is_text(x)][:1] if isinstance(content, list) and content else [content]
    if wrong:
        raise DataError(f"{option} {source}: {what} are texts, one a line or a JSON list; got {wrong[0]!r}.")
    return [str(text) for text in content]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
