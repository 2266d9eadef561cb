"""The page on `velm serve` itself: it shows what the pipeline computes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from browser import Browser, find_browser
from page_visit import IDLE, TEXT, Visit

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@pytest.fixture
def origin(write_checkpoint):
    pytest.importorskip("fastapi", reason="pip install 'velm[serve]'")
    command = [sys.executable, "-m", "velm", "serve", str(write_checkpoint()), "--port", "0", "--token", "secret"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            pytest.fail("velm serve did not start")
        process.terminate()
        process.communicate(timeout=60)


def test_the_page_shows_what_the_pipeline_computes(origin, pipeline, tmp_path):
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
        assert browser.problems == []
