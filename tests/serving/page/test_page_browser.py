"""The page in a browser: what it asks of the server, and what it shows."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from browser import find_browser
from page_server import COLOURS, PARTS
from page_visit import CAPTION, IDLE, TEXT, decoded
from PIL import Image

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


def test_a_dropped_image_is_captioned_word_by_word(page):
    page.server.pause = 0.06
    page.run("""window.seen = []; new MutationObserver(() => seen.push(document.getElementById('caption').textContent))
        .observe(document.getElementById('caption'), {childList: true})""")
    page.captioned()
    seen = page.run("seen.filter((text) => text)")
    assert len(seen) >= len(PARTS) - 2
    assert all(CAPTION.startswith(text) for text in seen)
    assert page.run("[...document.querySelectorAll('.word')].map((w) => w.textContent)") == CAPTION.split()
    [body] = page.server.bodies("/v1/caption")
    assert decoded(body["image"]).size == (48, 32)
    assert (body["stream"], body["maps"], "temperature" in body) == (True, True, False)
    said = [text for name, text in page.run("said") if name == "status"]
    assert said == ["Image: scene.png. Generating …", f"Caption: {CAPTION}"]  # read once, not with each part


def test_a_pasted_and_a_chosen_image_are_taken_too(page):
    page.run("""(async () => { const canvas = new OffscreenCanvas(5, 4); canvas.getContext('2d');
        const data = new DataTransfer(); const blob = await canvas.convertToBlob();
        data.items.add(new File([blob], 'p.png', {type: 'image/png'}));
        document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data})); })()""")
    page.wait(f"{TEXT.format('image-facts')} === 'p.png, 5 × 4' && {IDLE}")
    node = page.browser.call("DOM.getDocument")["root"]["nodeId"]
    node = page.browser.call("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
    page.browser.call("DOM.setFileInputFiles", nodeId=node, files=[page.file((7, 9), "c.png")])
    page.wait(f"{TEXT.format('image-facts')} === 'c.png, 7 × 9' && {IDLE}")
    assert [decoded(body["image"]).size for body in page.server.bodies("/v1/caption")] == [(5, 4), (7, 9)]


def test_a_file_that_is_no_image_is_refused_with_its_name(page):
    (page.folder / "notes.txt").write_text("no image")
    page.drop(str(page.folder / "notes.txt"))
    page.wait(f"{TEXT.format('alert')}.startsWith('notes.txt is not an image')")
    assert page.run("document.getElementById('frame').hidden")
    assert page.server.bodies("/v1/caption") == []


def test_a_word_shows_where_the_model_attended(page):
    page.captioned()
    page.click(".word:nth-of-type(2)")  # " red": position (0, 1) of 3 x 3
    alpha = page.alpha()
    height, width = alpha.shape
    assert (height, width) == (427, 640)  # the image's 2 : 3
    left = (width - height) // 2  # the model sees the central square
    assert (alpha[:, : left - 2] > 190).all()
    assert (alpha[:, left + height + 2 :] > 190).all()
    assert alpha[height // 6, width // 2] < 50  # smooth
    assert alpha[5 * height // 6, width // 2] > 190
    assert page.text("map-text") == "“red”: most attention on the upper centre (80%)."
    assert page.run("document.getElementById('map').ariaLabel") == page.text("map-text")
    assert page.run("[...document.querySelectorAll('[aria-pressed=true]')].map((w) => w.textContent)") == ["red"]
    page.click(".word:nth-of-type(3)")  # two parts: positions (0, 2) and (1, 0)
    assert page.text("map-text").endswith("the upper right (41%), then the middle left (41%).")
    page.click("#hide-map")
    assert page.run("document.getElementById('map').hidden")
    assert page.text("map-text") == ""
    assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 0


def test_beams_are_answered_whole_with_their_maps(page):
    page.captioned()
    page.click("#options summary")
    page.type("num_beams", "4")
    page.submit("caption-form")
    assert page.text("caption") == "two beams."
    assert page.server.bodies("/v1/caption")[-1]["num_beams"] == 4
    page.click(".word:nth-of-type(2)")
    assert "lower left (80%)" in page.text("map-text")
    page.type("temperature", "0.7")
    page.submit("caption-form")
    body = page.server.bodies("/v1/caption")[-1]
    assert (body["temperature"], "num_beams" in body) == (0.7, False)  # they exclude each other


def test_stop_keeps_what_has_arrived(page):
    page.server.pause = 0.3
    page.drop(page.file())
    page.wait("document.querySelectorAll('.word').length === 2")
    page.click("#stop")
    page.wait(IDLE)
    assert page.text("caption") == "a red"
    assert page.run("document.activeElement.id") == "write"


def test_texts_are_compared_and_compared_again_with_the_next_image(page):
    page.type("text", "short")
    page.submit("similarity-form")
    assert page.text("alert").startswith("There is no image yet")
    page.captioned()
    for text in ("short", "a longer text"):
        page.type("text", text)
        page.submit("similarity-form")
    rows = page.run("[...document.querySelectorAll('#texts .row')].map((row) => row.innerText.split('\\n'))")
    assert [row[:2] for row in rows] == [["a longer text", "0.130"], ["short", "0.050"]]
    assert (
        page.text("map-text")
        == "“a longer text”: most similar in the upper right (0.80), least in the lower right (0.03)."
    )
    assert page.alpha().min() < 20
    before = len(page.server.bodies("/v1/similarity"))
    page.drop(page.file((10, 10), "b.png"))
    page.wait(f"{TEXT.format('image-facts')}.startsWith('b.png') && {IDLE}")
    asked = page.server.bodies("/v1/similarity")[before:]
    assert sorted((body["text"], decoded(body["image"]).size) for body in asked) == [
        ("a longer text", (10, 10)),
        ("short", (10, 10)),
    ]
    page.click("#clear-texts")
    assert page.run("document.querySelectorAll('#texts li').length") == 0


def test_search_by_text_and_image_and_a_result_becomes_the_image(page):
    page.submit("search-form")
    assert page.text("alert").startswith("The search has no query")
    page.type("query", "a star")
    page.type("minus", "red")
    page.submit("search-form")
    assert page.server.bodies("/v1/search") == [{"text": "a star", "minus": "red", "k": 20}]
    page.wait(f"document.querySelectorAll('#results img').length === {len(COLOURS)}")
    assert page.run("[...document.querySelectorAll('.tag')].map((t) => t.textContent)") == [
        "0.900",
        "0.800",
        "0.700",
        "0.600",
    ]
    page.click("#results li:nth-child(3) button")
    page.wait(f"{TEXT.format('image-facts')} === 'a/2.png, 24 × 16' && {TEXT.format('caption')} && {IDLE}")
    assert page.run("document.activeElement.id") == "image-heading"
    pixel = decoded(page.server.bodies("/v1/caption")[-1]["image"]).getpixel((5, 5))
    assert np.abs(np.subtract(pixel, COLOURS[2])).max() < 12
    page.type("query", "")
    page.press("Delete")
    page.run("document.getElementById('query').value = document.getElementById('minus').value = ''")
    page.click("#with-image")
    page.submit("search-form")
    body = page.server.bodies("/v1/search")[-1]
    assert decoded(body.pop("image")).size == (24, 16)
    assert body == {"k": 20}


def test_the_token_is_asked_once_and_kept(page):
    page.server.reset()
    page.server.token = "right"
    page.visit()
    page.wait("document.getElementById('token-dialog').open")
    assert page.run("document.activeElement.id") == "token"
    page.press(*"wrong", "Enter")
    page.wait(
        f"{TEXT.format('token-lead')}.startsWith('The server refuses') && document.getElementById('token-dialog').open"
    )
    page.press(*"right", "Enter")
    page.wait("!document.getElementById('parts').hidden")
    page.captioned()
    page.type("query", "x")
    page.submit("search-form")
    page.wait("document.querySelectorAll('#results img').length > 0")  # thumbnails bear it, too
    page.visit()
    page.wait("!document.getElementById('parts').hidden")
    assert not page.run("document.getElementById('token-dialog').open")
    page.run("sessionStorage.clear()")
    page.visit()
    page.wait("document.getElementById('token-dialog').open")
    page.press("Escape")
    page.wait(f"{TEXT.format('alert')}.includes('answers only with its token')")
    page.refused(401)


def test_errors_of_the_server_are_shown_as_text(page):
    page.server.answers["/v1/caption"] = (422, {"error": {"message": "num_beams 3 <b>is</b> wrong."}})
    page.drop(page.file())
    page.wait(f"{TEXT.format('alert')}.includes('<b>is</b> wrong.') && {IDLE}")
    page.refused(422)
    page.click("#alert button")
    assert page.text("alert") == ""
    page.server.answers.clear()
    page.server.breaks = 3
    page.submit("caption-form")
    page.wait(f"{TEXT.format('alert')}.includes('The server failed; its log says where.')")
    page.server.breaks = None
    page.submit("caption-form")
    assert page.text("caption") == CAPTION
    assert page.text("alert") == ""  # a success removes the error
    page.server.answers["/v1/similarity"] = (502, {"no": "error"})
    page.type("text", "x")
    page.submit("similarity-form")
    assert "502" in page.text("alert")
    page.refused(502)


def test_the_page_waits_for_the_model(page):
    page.server.answers["/v1/describe"] = (503, {"error": {"message": "The model is being loaded."}})
    page.visit()
    page.wait(f"{TEXT.format('facts')} === 'The model is loading …'")
    page.server.answers.clear()
    page.wait("!document.getElementById('parts').hidden")
    assert page.text("alert") == ""
    page.refused(503)


SHOWN = """[...document.querySelectorAll('[id$=-part], #source-field')]
    .filter((e) => e.checkVisibility()).map((e) => e.id.split('-')[0])"""


@pytest.mark.parametrize(
    ("description", "parts"),
    [
        ({}, ["image", "caption", "similarity", "search"]),
        ({"search": None, "captions": False, "reads": [], "attention_map": False}, ["image", "similarity"]),
        ({"embeddings": False, "similarity_map": False, "search": None}, ["image", "caption"]),
        ({"embeddings": False, "search": None, "reads": ["image", "text"]}, ["image", "caption", "source"]),
        ({"embeddings": False, "search": None, "reads": ["text"], "image": None}, ["caption", "source"]),
    ],
    ids=["all", "encoder", "captioner", "answerer", "translator"],
)  # fmt: skip
def test_what_the_model_cannot_do_is_not_shown(page, description, parts):
    page.open(**description)
    assert page.run(SHOWN) == parts


def test_a_decoder_that_reads_a_text_waits_for_it(page):
    page.open(reads=["image", "text"])
    page.drop(page.file())
    page.wait(TEXT.format("image-facts"))
    assert page.server.bodies("/v1/caption") == []
    page.type("source", "what is left of the star?")
    page.press("Enter")
    page.wait(f"{TEXT.format('caption')} === {json.dumps(CAPTION)} && {IDLE}")
    [body] = page.server.bodies("/v1/caption")
    assert body["text"] == "what is left of the star?"
    assert decoded(body["image"]).size == (48, 32)


def test_a_caption_without_maps_is_plain_text(page):
    page.open(attention_map=False)
    page.captioned()
    assert page.run("document.querySelectorAll('.word').length") == 0
    assert not page.run("document.getElementById('caption-lead').checkVisibility()")


def test_an_image_is_scaled_down_only_if_the_server_would_refuse_it(page):
    noise = np.random.default_rng(0).integers(0, 256, (300, 600, 3), dtype=np.uint8)
    path = page.folder / "noise.png"
    Image.fromarray(noise).save(path)
    page.drop(str(path))
    page.wait(f"{TEXT.format('caption')} && {IDLE}")
    assert (
        page.server.bodies("/v1/caption")[0]["image"]
        == "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    )
    for limits in ({"body": 200_000}, {"body": 1 << 20, "pixels": 45_000}):
        page.open(limits=limits)
        page.drop(str(path))
        page.wait(f"{TEXT.format('caption')} && {IDLE}")
        [body] = page.server.bodies("/v1/caption")
        assert len(json.dumps(body)) < limits["body"]
        width, height = decoded(body["image"]).size
        assert width * height <= limits.get("pixels", 180_000)
        assert width > 150
        assert width / height == pytest.approx(2, rel=0.05)
