"""Bad requests: each is answered 4xx with a reason, and the server is alive and correct after each."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import pytest
from corpus import png_header
from served import Served, data_url, image_part, png, tiny_pipeline

JSON = {"Content-Type": "application/json"}
JPEG = png(1, "JPEG", (80, 60))
DEEP = '{"input": ' + "[" * 100_000 + "]" * 100_000 + "}"


def embed(**body: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/v1/embeddings", {"json": body}


def caption(**body: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/v1/caption", {"json": {"image": data_url(png()), **body}}


def shown(content: bytes, kind: str = "png") -> tuple[str, str, dict[str, Any]]:
    return caption(image=data_url(content, kind))


def raw(content: bytes | str, headers: dict[str, str] = JSON, path: str = "/v1/embeddings") -> Any:
    return "POST", path, {"content": content, "headers": headers}


async def chunked():
    for _ in range(40):
        yield b"x" * 10_000


def bomb() -> bytes:
    """A whole PNG of 30,000 x 30,000 pixels of one colour in a few kilobytes of a body."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000 * 3751), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
CASES: dict[str, tuple[Any, int, str]] = {
    # images
    "image bomb": (shown(bomb()), 413, "pixels"),
    "header of 40,000 x 40,000": (shown(png_header(40_000, 40_000)), 413, "pixels"),
    "header beyond the limit": (shown(png_header(2001, 1000)), 413, "2001 x 1000 = 2001000 pixels; the limit is"),
    "truncated JPEG": (shown(JPEG[:-200], "jpeg"), 400, "Cannot read image 'image'"),
    "truncated PNG": (shown(png()[:60]), 400, "Cannot read image 'image'"),
    "only the first bytes": (shown(JPEG[:4], "jpeg"), 400, "header is damaged"),
    "an empty file": (shown(b""), 400, "header is damaged"),
    "no image": (shown(b"this is no image"), 400, "is no image of JPEG, PNG"),
    "PostScript": (shown(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 400, "is no image of"),
    "SVG by its type": (caption(image="data:image/svg+xml;base64,PHN2Zy8+"), 400, "is an SVG"),
    "SVG by its content": (shown(SVG), 400, "is no image of"),
    "http URL": (caption(image="http://169.254.169.254/latest/meta-data"), 400, "scheme 'http'. The server fetches"),
    "https URL": (embed(input=[{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]), 400, "'https'"),
    "file URL": (caption(image="file:///etc/passwd"), 400, "scheme 'file'"),
    "a path": (caption(image="/etc/passwd"), 400, "is no URL"),
    "data of another type": (caption(image="data:text/html;base64,PGI+"), 400, "begins with 'data:text/html"),
    "data without base64": (caption(image="data:image/png,abc"), 400, "begins with 'data:image/png,"),
    "broken base64": (caption(image="data:image/png;base64,!!!!"), 400, "is not base64"),
    "base64 that is cut": (caption(image=data_url(png())[:-3]), 400, "image"),
    "the second of two images": (
        embed(input=[image_part(0), {"type": "image_url", "image_url": {"url": data_url(b"x")}}]), 400, "input.1",
    ),
    # texts
    "a text of 100,000 characters": (embed(input="a " * 50_000), 400, "has 100000 characters; the limit is 8192"),
    "an empty text": (embed(input=""), 400, "is empty"),
    "a blank text": (embed(input=["red", "  \u3000 "]), 400, "input.1 is empty"),
    "half of a surrogate pair": (raw('{"input": "\\ud800"}'), 400, "surrogate"),
    "no inputs": (embed(input=[]), 400, "has 0 texts"),
    "too many inputs": (embed(input=["red"] * 65), 400, "has 65 texts and images; a request has 1 to 64"),
    "token ids": (embed(input=[1, 2, 3]), 400, "input"),
    # JSON and its types
    "no body": (raw(b""), 400, "not a JSON object"),
    "a truncated body": (raw(b'{"input": "red'), 400, "The body is not JSON"),
    "not UTF-8": (raw(b'{"input": "\xff\xfe"}'), 400, "The body is not JSON"),
    "nested JSON": (raw(DEEP), 400, "nested too deeply"),
    "NaN": (raw('{"image": "x", "temperature": NaN}', path="/v1/caption"), 400, "NaN is no number of JSON"),
    "infinity": (raw('{"input": "red", "dimensions": -Infinity}'), 400, "-Infinity is no number"),
    "a number of 5,000 digits": (raw('{"input": "red", "dimensions": ' + "9" * 5000 + "}"), 400, "body is not JSON"),
    "a list": (raw("[]"), 400, "not a JSON object"),
    "null": (raw("null"), 400, "not a JSON object"),
    "another content type": (raw('{"input": "red"}', {"Content-Type": "text/plain"}), 400, "Content-Type"),
    "a form": (raw("input=red", {"Content-Type": "application/x-www-form-urlencoded"}), 400, "Content-Type"),
    "a wrong type of input": (embed(input=3), 400, "input cannot be read"),
    "a wrong type of part": (embed(input=[{"type": "audio"}]), 400, "input.0"),
    "an image without its URL": (embed(input=[{"type": "image_url", "image_url": {}}]), 400, "input.0.image_url.url"),
    "an unknown field": (embed(input="red", inputs="red"), 400, "Unknown field 'inputs'"),
    "an unknown encoding": (embed(input="red", encoding_format="int8"), 400, "encoding_format"),
    "other dimensions": (embed(input="red", dimensions=4), 400, "of this model have 8"),
    "another model": (embed(input="red", model="gpt-4"), 404, "'gpt-4' is not here; this is 'model'"),
    "a string for a boolean": (caption(stream="yes"), 400, "stream"),
    "no field image": (("POST", "/v1/similarity", {"json": {"text": "red"}}), 400, "image"),
    "a text that is not read": (caption(text="red"), 400, "attends over image"),
    # options of generation
    "an unknown option": (caption(beams=3), 400, "Unknown ['beams']. Options of writing: max_length"),
    "a string for a number": (caption(num_beams="3"), 400, "num_beams is '3'"),
    "beams beyond the limit": (caption(num_beams=10_000), 400, "more than this server computes, 16"),
    "a length beyond the limit": (caption(max_length=10_000), 400, "more than this server computes, 15"),
    "a negative length": (caption(max_length=-1), 400, "max_length -1 is too small"),
    "a huge number": (caption(top_k=10**30, temperature=1.0), 400, "top_k is out of range"),
    "a float that is infinite": (raw('{"image": "x", "temperature": 1e999}', path="/v1/caption"), 400, "temperature"),
    "a phrase that is no text": (caption(forbidden=[1]), 400, "forbidden takes a list"),
    "an object for a phrase": (caption(prefix={"a": 1}), 400, "prefix takes a text"),
    "many phrases": (caption(forbidden=["red"] * 101), 400, "at most 100 texts"),
    "options that contradict": (caption(top_k=3), 400, "for sampling; give a temperature"),
    "beams in a stream": (caption(stream=True, num_beams=2), 400, "stream greedily"),
    "a word outside of the vocabulary": (caption(prefix="zebra"), 400, "not in the model's vocabulary"),
    # HTTP
    "a wrong method": (("GET", "/v1/embeddings", {}), 405, "Method Not Allowed"),
    "an unknown method": (("BREW", "/v1/caption", {}), 405, "Method Not Allowed"),
    "an unknown path": (("GET", "/v1/models/../../etc/passwd", {}), 404, "Not Found"),
    "a path out of the page": (("GET", "/page/..%2f__init__.py", {}), 404, "Not Found"),
    "a path of two slashes": (("GET", "//v1//describe", {}), 404, "Not Found"),
    "a thumbnail by a path": (("GET", "/v1/thumbnails/..%2f..%2fetc%2fpasswd", {}), 404, "Not Found"),
    "huge headers": (("GET", "/healthz", {"headers": {"X-Big": "x" * 20_000}}), 431, "headers have more than"),
    "a Content-Length of words": (raw(b"{}", {**JSON, "Content-Length": "many"}), 400, "Content-Length"),
    "a negative Content-Length": (raw(b"{}", {**JSON, "Content-Length": "-5"}), 400, "Content-Length"),
    "a body beyond the limit": (raw(b"x" * 300_001), 413, "more than 300000 bytes"),
    "a chunked body beyond the limit": (raw(chunked()), 413, "more than 300000 bytes"),
    "another host": (("GET", "/v1/describe", {"headers": {"Host": "evil.example"}}), 403, "Without a token"),
}  # fmt: skip


@pytest.fixture(scope="module")
def limited():
    served = Served(tiny_pipeline(), max_body=300_000, max_pixels=2_000_000, queue=64)
    yield served
    served.close()


@pytest.fixture(scope="module")
def expected(limited):
    return limited.pipeline.embed_texts(["a red circle"])[0].tolist()


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_has_a_reason_and_harms_nobody(limited, expected, name):
    (method, path, options), status, reason = CASES[name]
    answer = limited.ask(method, path, **options)
    assert answer.status_code == status, answer.text
    error = json.loads(answer.text, parse_constant=pytest.fail)["error"]
    assert reason in error["message"], error
    assert set(error) == {"message", "type", "param"}
    assert len(answer.content) < 1000
    after = limited.post("/v1/embeddings", input="a red circle")
    assert after.json()["data"][0]["embedding"] == pytest.approx(expected, abs=1e-6)
    assert limited.service.batcher.taken == limited.service.active == limited.app.held == 0


def test_there_are_at_least_forty():
    assert len(CASES) >= 40


def test_the_field_that_is_wrong_is_named(limited):
    url = data_url(base64.b64decode(""))
    parts = [image_part(0), {"type": "image_url", "image_url": {"url": url}}]
    assert limited.post("/v1/embeddings", input=parts).json()["error"]["param"] == "input.1"
    assert limited.ask(*caption(num_beams=0)[:2], **caption(num_beams=0)[2]).json()["error"]["param"] == "num_beams"
