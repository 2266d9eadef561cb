"""The report in a browser: all controls work, and the console stays empty."""

from __future__ import annotations

import numpy as np
import pytest
from browser import Browser, find_browser
from evaluations import make_evaluation, noise_records

from velm.report.report import evaluated_model, write_report

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium")

COUNT = "document.querySelectorAll('{}').length"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    texts = ["a <img src=x onerror=alert(1)> dog", "a second", "a third"]
    records = noise_records(60, texts=texts)
    models = [
        evaluated_model("a.ckpt", make_evaluation(records, caption="a <script>red</script> circle")),
        evaluated_model("b.ckpt", make_evaluation(records, caption="a second")),
    ]
    write_report(folder, models, records, split="test")
    return folder / "report.html"


@pytest.fixture(params=["light", "dark", "phone"])
def browser(page, tmp_path, request):
    with Browser(PROGRAM, tmp_path / "profile") as browser:
        if request.param == "dark":
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            browser.call("Emulation.setEmulatedMedia", features=features)
        if request.param == "phone":
            browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
        browser.open(page)
        yield browser
        assert browser.problems == []


def test_all_controls_work(browser):
    def cards(section):
        return browser.run(COUNT.format(f"#{section} .card"))

    def click(selector):
        browser.run(f"document.querySelector('{selector}').click()")

    assert cards("captions") == 24
    click("#captions .more")
    assert cards("captions") == 48
    click("#captions .more")
    assert cards("captions") == 60
    assert browser.run("document.querySelector('#captions .more').hidden")
    click("#captions [value=exact]")
    assert cards("captions") == 0
    click("#captions [value=other]")
    assert cards("captions") == 24
    for order in ("worst", "best", "difference", "split"):
        browser.run(f"s = document.querySelector('select'); s.value = '{order}'; s.dispatchEvent(new Event('change'))")
        assert cards("captions") == 24
    browser.run("q = document.querySelector('input'); q.value = 'ID5'; q.dispatchEvent(new Event('input'))")
    assert cards("captions") == 11  # id5, id50 ... id59
    assert cards("retrieval") == 12
    click("#retrieval [value=image_to_text]")
    click("#retrieval [value=hits]")
    assert set(browser.run("[...document.querySelectorAll('#retrieval .tag')].map((t) => t.textContent)")) == {"rank 1"}
    click("#retrieval [value=misses]")
    assert "rank 1" not in browser.run("[...document.querySelectorAll('#retrieval .tag')].map((t) => t.textContent)")
    assert cards("confusions") == 8


def test_a_word_shows_its_map_and_a_click_pins_it(browser):
    browser.run("words = document.querySelectorAll('#captions .card:first-child .word'); canvas = words[0].closest("
                "'.card').querySelector('canvas'); on = () => canvas.classList.contains('on')")  # fmt: skip
    assert browser.run("words.length") == 5  # A's three and B's two
    assert browser.run("on()") is False
    browser.run("words[1].dispatchEvent(new Event('mouseenter'))")
    assert browser.run("on()") is True
    assert browser.run("[canvas.width, canvas.height]") == [4, 4]
    pixels = np.array(browser.run("[...canvas.getContext('2d').getImageData(0, 0, 4, 4).data]")).reshape(16, 4)
    assert pixels[:, 3].min() < 40 < pixels[:, 3].max()  # transparent where the model attended
    browser.run("words[1].dispatchEvent(new Event('mouseleave'))")
    assert browser.run("on()") is False
    browser.run("words[2].click(); words[2].dispatchEvent(new Event('mouseleave'))")
    assert browser.run("on()") is True
    browser.run("words[2].dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))")
    assert browser.run("on()") is False


def test_markup_in_captions_is_shown_as_text(browser):
    assert "<script>red</script>" in browser.run("document.querySelector('#captions .caption').textContent")
    assert "<img src=x onerror=alert(1)>" in browser.run("document.querySelector('#captions .refs').textContent")
    assert browser.run("[...document.images].every((image) => image.src.startsWith('data:image/jpeg;base64,'))")


def test_every_image_loads_and_nothing_overflows(browser):
    browser.run("document.images.forEach ? 0 : [...document.images].forEach((i) => { i.loading = 'eager' })")
    loaded = "Promise.all([...document.images].map((image) => image.decode())).then(() => document.images.length)"
    assert browser.run(loaded) > 60
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("[...document.querySelectorAll('nav a')].every((a) => document.querySelector(a.hash))")
