"""The report of an untrained model on Flickr8k in a browser: all controls work."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from browser import Browser, find_browser

from velm.cli import main as velm

PROGRAM = find_browser()
TABLE = Path(__file__).parents[3] / "shared" / "data" / "flickr8k" / "captions.csv"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(sentences|texts) are longer"),
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium"),
    pytest.mark.skipif(not TABLE.exists(), reason="no ../shared/data/flickr8k beside the repository"),
]
EVIL = 'a <script>document.title = "taken"</script> man'
SIZE = 20e6  # bytes


@pytest.fixture
def report(tmp_path, write_checkpoint):
    """A thousand photographs and one broken file; the first caption of the first image is markup."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        photographs = [(TABLE.parent / row["image_path"], row["text"], row["image_id"]) for row in csv.DictReader(file)]
    names = list(dict.fromkeys(name for *_, name in photographs))[:1000]
    rows = [row for row in photographs if row[2] in set(names)]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    rows = [(rows[0][0], EVIL, "markup"), *rows, (tmp_path / "broken.jpg", "a dog", "broken")]
    table = tmp_path / "captions.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "text", "image_id", "split"])
        writer.writerows((*row, "test") for row in rows)
    changes = {"decoder": {"name": "rnn", "dim": 16}}
    arguments = ["evaluate", str(write_checkpoint(**changes)), "--output", str(tmp_path / "out"), "--num_beams", "2"]
    dataset = f"{{name: csv, path: {table}, allow_outside: true}}"
    assert velm([*arguments, "--max_length", "8", "--data.dataset", dataset]) == 1
    return tmp_path / "out" / "report.html"


def test_a_thousand_photographs(report, tmp_path):
    assert report.stat().st_size < SIZE
    with Browser(PROGRAM, tmp_path / "profile") as browser:

        def run(script):
            return browser.run(script)

        browser.open(report)
        title = run("document.title")
        assert "1 image could not be read" in run("document.querySelector('.note summary').textContent")
        run("document.querySelector('.note summary').click()")
        assert "broken.jpg" in run("document.querySelector('.note li').textContent")
        for link in run("[...document.querySelectorAll('nav a')].map((a) => a.hash)"):
            run(f"document.querySelector('nav a[href=\"{link}\"]').click()")
        for button in (
            "#retrieval [value=image_to_text]",
            "#retrieval [value=hits]",
            "#retrieval [value=misses]",
            "#retrieval [value=text_to_image]",
            "#confusions .more",
        ):
            run(f"document.querySelector('{button}').click()")
        for _ in range(60):  # of 24 cards
            if run("document.querySelector('#captions .more').hidden"):
                break
            run("document.querySelector('#captions .more').click()")
        assert run("document.querySelectorAll('#captions .card').length") == 1000
        run("document.querySelectorAll('#captions .card:last-child .word').forEach((word) => word.click())")
        assert run("document.querySelector('#captions .card:last-child canvas').classList.contains('on')")
        run("q = document.querySelector('input'); q.value = 'markup'; q.dispatchEvent(new Event('input'))")
        assert run("[...document.querySelectorAll('#captions .refs li')].map((li) => li.textContent)") == [EVIL]
        run("[...document.images].forEach((image) => { image.loading = 'eager' })")
        assert run("Promise.all([...document.images].map((image) => image.decode())).then(() => true)")
        assert run("document.documentElement.scrollWidth <= window.innerWidth")
        assert run("document.title") == title
        assert browser.problems == []
