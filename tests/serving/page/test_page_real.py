"""The page on `velm serve` itself: it shows what the pipeline computes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from browser import Browser, find_browser
from page_visit import IDLE, TEXT, Visit
from PIL import Image

from velm.search import update
from velm.search.sources import folder_source

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 225)}
PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@pytest.fixture
def photos(tmp_path):
    """A folder of three images of one colour each."""
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def origin(write_checkpoint, pipeline, photos, tmp_path):
    pytest.importorskip("fastapi", reason="pip install 'velm[serve]'")
    update(pipeline, folder_source(photos), tmp_path / "index", checkpoint="tiny.ckpt")
    command = [sys.executable, "-m", "velm", "serve", str(write_checkpoint()), "--index", str(tmp_path / "index")]
    command += ["--port", "0", "--token", "secret"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            pytest.fail("velm serve did not start")
        process.terminate()
        process.communicate(timeout=60)


def test_the_page_shows_what_the_pipeline_computes(origin, pipeline, photos, tmp_path):
    with Browser(PROGRAM, tmp_path / "profile", origin) as browser:
        page = Visit(browser, origin, tmp_path)
        page.visit()
        page.wait("document.getElementById('token-dialog').open")
        page.press(*"secret", "Enter")
        page.wait("!document.getElementById('parts').hidden")
        page.refused(401)
        path = page.file()
        page.drop(path)
        [caption] = pipeline.caption([path])
        page.wait(f"{TEXT.format('caption')}.trim() === {json.dumps(caption)} && {IDLE}")
        assert page.run("document.querySelectorAll('.word').length") == len(caption.split())
        page.click(".word:last-of-type")
        assert page.alpha().max() > 190
        assert "most attention on" in page.text("map-text")
        page.type("text", "a red circle")
        page.submit("similarity-form")
        cosine = float(pipeline.embed_images([path]) @ pipeline.embed_texts(["a red circle"]).T)
        assert page.text("texts").endswith(f"{cosine:.3f}")
        assert "most similar" in page.text("map-text")
        page.drop(str(photos / "green.png"))
        page.wait(f"{TEXT.format('image-facts')}.startsWith('green.png') && {IDLE}")
        page.click("#with-image")
        page.submit("search-form")
        page.wait(f"document.querySelectorAll('#results img').length === {len(COLOURS)}")
        assert page.run("document.querySelector('#results .path').textContent") == "green.png"
        assert page.run("document.querySelector('#results .tag').textContent") == "1.000"
        page.click("#results li:nth-child(2) button")  # its thumbnail becomes the image
        other = page.run("document.querySelectorAll('#results .path')[1].textContent")
        page.wait(f"{TEXT.format('image-facts')} === '{other}, 40 × 30' && {IDLE}")
        assert browser.problems == []
