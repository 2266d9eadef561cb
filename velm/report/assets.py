"""The files of the pages: styles, scripts and templates in the folder `page`."""

from __future__ import annotations

import re
from importlib.resources import files

__all__ = ["asset"]


def asset(name: str, **values: str) -> str:
    """A file of the page with `{{ key }}` replaced by values, in which nothing is replaced: they may hold any text."""
    text = (files("velm.report") / "page" / name).read_text(encoding="utf-8")
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: values[match[1]], text) if values else text
