"""The page in a browser without a mouse, without sight, on a narrow screen and in both themes."""

from __future__ import annotations

import pytest
from browser import find_browser
from page_visit import IDLE, TEXT

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


def test_all_of_it_works_with_the_keyboard(page):
    page.captioned()
    page.run("document.activeElement.blur()")
    focused = """(() => { const e = document.activeElement, shown = e.id === 'file' ? e.nextSibling : e;
        return [e.id || e.className, getComputedStyle(shown).outlineStyle]; })()"""
    order = []
    for _ in range(30):
        page.press("Tab")
        name, outline = page.run(focused)
        assert outline != "none", f"the focus on {name} is not visible"
        order.append(name)
        if name == "with-image":
            break
    first = ["file", "word", "write", "text"]
    assert [name for name in order if name in first] == first  # one stop for all words
    assert order.index("query") < order.index("minus") < order.index("count")
    page.run("document.querySelector('.word').focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.text("map-text").startswith("“circle”")
    page.press("End")
    assert page.text("map-text").startswith("“star”")
    page.press("ArrowRight", "Home", "ArrowLeft")
    assert page.text("map-text").startswith("“a”")
    page.press("Escape")
    assert page.run("document.getElementById('map').hidden")
    page.run("document.getElementById('text').focus()")
    page.press(*"star", "Enter")
    page.wait(f"document.querySelectorAll('.row').length === 1 && {IDLE}")
    page.run("document.getElementById('query').focus()")
    page.press(*"star", "Enter")
    page.wait("document.querySelectorAll('#results img').length > 0")
    page.run("document.querySelector('.result').focus()")
    page.press("Enter")
    page.wait(f"{TEXT.format('image-facts')}.startsWith('a/0.png') && {IDLE}")


CONTRASTS = """(() => {
  const part = (v) => { const x = v / 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const below = (e) => { for (; e; e = e.parentElement) { const c = colour(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('.unseen')) continue;
    const [a, b] = [light(colour(getComputedStyle(e).color)), light(below(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 30)]);
  }
  return found; })()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_and_can_be_read(page, width, dark):
    page.browser.emulate(dark=dark, width=width)
    page.captioned()
    page.type("text", "a text that is long enough to be broken, with-a-word-that-is-long-enough-to-be-broken-as-well")
    page.submit("similarity-form")
    page.type("query", "x")
    page.submit("search-form")
    page.server.answers["/v1/caption"] = (422, {"error": {"message": "x" * 200}})
    page.submit("caption-form")
    page.refused(422)
    page.server.answers.clear()
    page.click("#options summary")
    assert page.run("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('main *')].filter((e) => e.checkVisibility() && !e.closest('.unseen')
        && e.getBoundingClientRect().right > innerWidth + 1).length"""
    assert page.run(outside) == 0
    contrasts = page.run(CONTRASTS)
    assert len(contrasts) > 30
    assert [each for each in contrasts if each[0] < 4.5] == []
    heights = """[...document.querySelectorAll('button, .button, summary, input:not(.unseen, [type=checkbox])')]
        .filter((e) => e.checkVisibility()).map((e) => [e.getBoundingClientRect().height, e.id || e.className])"""
    assert [each for each in page.run(heights) if each[0] < 24] == []  # WCAG 2.2, 2.5.8: targets of at least 24 pixels


def test_every_control_has_a_name_for_screen_readers(page):
    page.captioned()
    page.type("text", "x")
    page.submit("similarity-form")
    page.type("query", "x")
    page.submit("search-form")
    page.wait("document.querySelectorAll('#results img').length > 0")
    page.click(".word")
    page.browser.call("Accessibility.enable")
    nodes = page.browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = (
        "button",
        "textbox",
        "searchbox",
        "spinbutton",
        "checkbox",
        "image",
        "region",
        "heading",
        "DisclosureTriangle",
    )
    named = [
        (n["role"]["value"], n.get("name", {}).get("value", ""))
        for n in nodes
        if not n["ignored"] and n["role"]["value"] in roles
    ]
    assert len(named) > 25
    assert [each for each in named if not each[1].strip()] == []
    assert {role for role, _ in named} >= {"button", "searchbox", "spinbutton", "checkbox", "image", "heading"}


def test_nothing_moves_if_the_reader_asks_for_that(page):
    reduced = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    moving = "document.getAnimations().length"
    page.server.pause = 0.2
    for features, still in ((reduced, True), ([], False)):
        page.browser.call("Emulation.setEmulatedMedia", features=features)
        page.drop(page.file())
        page.wait("document.querySelectorAll('.word').length > 1 && !!document.querySelector('[aria-busy]')")
        assert (page.run(moving) == 0) is still
        page.wait(IDLE)
    assert page.run(moving) == 0
