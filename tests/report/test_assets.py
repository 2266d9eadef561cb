"""Values of a page are inserted as they are: untrusted text cannot name another value."""

from __future__ import annotations

from velm.report.assets import asset

PARTS = {"title": "t", "facts": "f", "style": "s", "sections": "all", "version": "1"}


def test_a_value_that_looks_like_a_placeholder_stays_as_it_is():
    page = asset("gallery.html", **{**PARTS, "title": "{{ sections }} \\1"})
    assert "<title>{{ sections }} \\1</title>" in page
    assert page.count("all") == asset("gallery.html", **PARTS).count("all")


def test_every_placeholder_of_a_page_is_replaced():
    assert "{{" not in asset("gallery.html", **PARTS)
