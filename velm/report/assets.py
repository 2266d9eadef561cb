"""The files of the pages: styles, scripts and templates in the folder `page`."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["asset"]


def asset(name: str, **values: str) -> str:
    """A file of the page with `{{ key }}` replaced by values."""
    text = (files("velm.report") / "page" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"{{{{ {key} }}}}", value)
    return text
