"""Laws of the files of the page: no inline code, no other server, accessible names, contrast in both themes."""

from __future__ import annotations

import itertools
import re
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "velm" / "serving" / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
SCRIPT = "\n".join(text for name, text in FILES.items() if name.endswith(".js"))
CSS = FILES["page.css"]
CONTROLS = ("input", "textarea", "select")
TEXT, SIGN = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11: smallest contrast of text, and of the edges of a control
SURFACES = ("paper", "card", "wash")


class Elements(HTMLParser):
    """All start tags with their attributes, and the text inside each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[int] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.all.append((tag, dict(attributes)))
        self.texts.append("")
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(len(self.all) - 1)

    def handle_endtag(self, tag):
        assert self.all[self.open.pop()][0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for index in self.open:
            self.texts[index] += data


HTML = Elements(FILES["index.html"])
IDS = [attributes["id"] for _, attributes in HTML.all if "id" in attributes]


def attributes_of(name: str) -> list[str]:
    return [value for _, attributes in HTML.all if (value := attributes.get(name))]


def test_nothing_refers_to_another_server():
    for name, text in FILES.items():
        without_namespace = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"""https?:|wss?://|["'(]//""", without_namespace), name
    for url in (*attributes_of("href"), *attributes_of("src")):
        folder, _, name = url.rpartition("/")
        assert folder == "page", f"{url} does not work below a proxy's prefix"
        assert name in FILES, url
    for name in re.findall(r'from "\./([^"]+)"', SCRIPT):
        assert name in FILES


def test_the_content_security_policy_allows_all_of_it():
    """default-src 'self': no script, style or handler inline, no eval, no markup from strings."""
    for tag, attributes in HTML.all:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "style"
        assert tag != "script" or attributes["src"]
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|cssText|[\"']style[\"']"
    assert not re.search(forbidden, SCRIPT)
    assert "url(" not in CSS
    assert "@import" not in CSS


def test_every_control_has_a_label_and_every_label_its_control():
    controls = {attributes.get("id"): tag for tag, attributes in HTML.all if tag in CONTROLS}
    labels = [attributes["for"] for tag, attributes in HTML.all if tag == "label"]
    assert sorted(labels) == sorted(controls)
    for (tag, _), text in zip(HTML.all, HTML.texts, strict=True):
        if tag in ("button", "label", "h1", "h2", "summary"):
            assert text.strip(), f"an empty {tag}"


def test_every_id_is_unique_and_exists_where_it_is_used():
    assert len(IDS) == len(set(IDS))
    for name in ("aria-labelledby", "aria-describedby"):
        for value in attributes_of(name):
            assert set(value.split()) <= set(IDS), value
    used = set(re.findall(r'\$\("([^"]+)"\)', SCRIPT))
    assert len(used) > 30
    assert used <= set(IDS)
    tasks = set(re.findall(r'\brun\("([^"]+)"', SCRIPT))
    assert tasks
    assert {f"{task}-part" for task in tasks} <= set(IDS)
    assert set(re.findall(r"#([a-z][\w-]*)", re.sub(r"\{[^}]*\}", "", CSS))) <= set(IDS)


def test_every_class_of_the_style_is_used():
    selectors = re.sub(r"\{[^{}]*\}", "", CSS)
    classes = set(re.findall(r"\.([a-z][\w-]*)", selectors))
    used = set(itertools.chain.from_iterable(value.split() for value in attributes_of("class")))
    unused = {name for name in classes - used if not re.search(rf'"{name}"', SCRIPT)}
    assert not unused


def test_results_are_announced_once():
    """The caption itself is no live region: a screen reader would read it again with each part."""
    live = {attributes["id"] for _, attributes in HTML.all if attributes.get("role") in ("status", "alert")}
    assert live == {"status", "alert", "map-text"}
    assert not attributes_of("aria-live")


def themes() -> dict[str, dict[str, str]]:
    """The colours of the light theme, and of the dark one over them."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S)
    )
    return {"light": light, "dark": light | dark}


def contrast(first: str, second: str) -> float:
    """The ratio of WCAG 2.2 between two colours #rrggbb, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_known_colours():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WebAIM's example of just too little


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_enough(theme):
    """Each colour that a text has, over each surface; the edges of controls and the focus over what surrounds them."""
    colours = themes()[theme]
    texts = set(re.findall(r"[{;] color: var\(--([\w-]+)\)", CSS))
    assert {"ink", "soft", "accent", "on-accent", "bad"} == texts
    pairs = [(text, surface, TEXT) for text in texts - {"on-accent", "bad"} for surface in SURFACES]
    pairs += [("on-accent", "accent", TEXT), ("bad", "bad-wash", TEXT), ("ink", "edge", TEXT)]
    pairs += [(edge, surface, SIGN) for edge in ("line", "accent") for surface in ("paper", "card")]
    for first, second, least in pairs:
        assert contrast(colours[first], colours[second]) >= least, f"{first} on {second}"


def test_the_page_is_part_of_the_package():
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [line] = re.findall(r'^velm = \["py\.typed".*$', config, re.M)
    patterns = re.findall(r'"([^"]+)"', line)
    assert all(any(fnmatch(f"serving/page/{name}", pattern) for pattern in patterns) for name in FILES)


def test_the_page_has_a_language_a_title_and_one_heading_of_each_section():
    assert dict(HTML.all[0][1])["lang"] == "en"
    tags = [tag for tag, _ in HTML.all]
    assert tags.count("h1") == tags.count("title") == tags.count("main") == 1
    assert tags.count("h2") == tags.count("section") + 1  # and the dialog's
