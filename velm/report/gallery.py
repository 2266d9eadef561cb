"""An HTML page of images in groups: one file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from velm.data.base import Record
from velm.report.assets import asset
from velm.report.thumbnails import Thumbnails
from velm.version import __version__

__all__ = ["Item", "Section", "gallery"]


class Item(NamedTuple):
    """An image with its file, a line below it, and whether it stands out."""

    file: str
    name: str
    note: str
    marked: bool = False


class Section(NamedTuple):
    """A group of images."""

    title: str
    items: Sequence[Item]


def gallery(title: str, facts: str, sections: Sequence[Section]) -> str:
    """The page; names and titles are escaped, an image that cannot be read is a grey box.

    Args:
        title: of the page.
        facts: a line below it.
        sections: in their order.
    """
    items = [item for section in sections for item in section.items]
    thumbnails = Thumbnails([Record(item.name, item.file, ()) for item in items], resize="squash")
    for row in range(len(items)):
        thumbnails.number(row)
    images = iter(thumbnails.images())
    bodies = "".join(
        f"<section><h2>{escape(section.title)}</h2><div class='images'>"
        + "".join(_figure(item, next(images)["uri"]) for item in section.items)
        + "</div></section>\n"
        for section in sections
    )
    return asset(
        "gallery.html",
        title=escape(title),
        facts=escape(facts),
        sections=bodies,
        style=asset("report.css"),
        version=escape(__version__),
    )


def _figure(item: Item, uri: str | None) -> str:
    image = "<span class='absent'></span>" if uri is None else f"<img src='{uri}' alt=''>"
    mark = " class='marked'" if item.marked else ""
    return f"<figure{mark}>{image}<figcaption>{escape(item.name)}<br><b>{escape(item.note)}</b></figcaption></figure>"
