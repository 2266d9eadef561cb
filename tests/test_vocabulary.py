"""One word for one thing: identifiers that the house no longer uses do not come back (CONTRIBUTING.md, "Words")."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "velm").rglob("*.py"))
INSTEAD = {
    "picture": "image",
    "sentence": "caption or text",
    "peer": "rank",
    "alike": "duplicate",
    "fault": "bad_sample, failure or violation",
    "swap": "hard_negative",
    "told": "a noun",
    "worded": "text_only",
    "spec": "config",
}
"""Word that is not used in a name -> the field's word."""
ALLOWED = {
    "unique_pictures", "pictures", "faults", "module_spec", "module_from_spec", "spec_from_file_location", "ParamSpec",
    "normalizer_spec",
}  # fmt: skip
"""Names in users' scripts (`unique_pictures`, `velm doctor --pictures`, `records.faults`) and in Python."""


def identifiers(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.keyword(arg=str(name)):
                names.add(name)
            case ast.alias(name=name, asname=alias):
                names.add(alias or name)
    return names


def words(name: str) -> list[str]:
    """['false', 'negative', 'share'] of `false_negative_share`, ['bad', 'sample'] of `BadSample`."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_use_the_words_of_the_field(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in identifiers(tree) - ALLOWED:
        for word in words(name):
            instead = INSTEAD.get(word) or INSTEAD.get(word.removesuffix("s"))
            assert instead is None, f"{path.name} names {name!r}: say {instead}"
