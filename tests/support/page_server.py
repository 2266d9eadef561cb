"""A server with the routes of `velm serve` and fixed answers, for tests of its page: what the page asks and shows."""

from __future__ import annotations

import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

import velm

PAGE = Path(velm.__file__).parent / "serving" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
PARTS = ("a", " red", " cir", "cle", " left", " of", " a", " star")  # a word in two parts
COLOURS = ((200, 30, 30), (30, 160, 60), (40, 70, 220), (240, 200, 20))
DESCRIPTION: dict[str, Any] = {
    "model": "tiny", "hash": "ab" * 32, "version": "0.0", "dim": 8, "captions": True, "embeddings": True,
    "similarity_map": True, "attention_map": True, "reads": ["image"], "image": {"size": 32, "resize": "crop"},
    "search": {"images": len(COLOURS)}, "limits": {"body": 1 << 20, "beams": 16, "max_length": 31},
    "options": {"num_beams": 1, "max_length": 31, "temperature": None},
}  # fmt: skip


def peak(row: int, column: int, side: int = 3) -> list[list[float]]:
    """A map (side, side) that is 0.8 at one position."""
    rest = 0.2 / (side * side - 1)
    return [[0.8 if (i, j) == (row, column) else rest for j in range(side)] for i in range(side)]


class PageServer(ThreadingHTTPServer):
    """Answers in threads; `requests` collects (path, body) of what was asked, `answers` replaces an answer by path.

    Attributes:
        description: what /v1/describe says, `DESCRIPTION` with changes.
        token: that requests have to bear; None: none.
        pause: seconds before each part of a caption.
        answers: path -> (status, JSON), instead of the usual answer.
        breaks: the parts after which a stream ends with an error; None: it does not.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"
        self.reset()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self, **changes: Any) -> None:
        """Back to the usual answers; `changes` are keys of the description."""
        self.description = DESCRIPTION | changes
        self.token: str | None = None
        self.pause, self.breaks = 0.0, None
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The bodies of the requests of a path."""
        return [body for asked, body in self.requests if asked == path]


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
        if (PAGE / name).is_file() and (self.path == "/" or self.path.startswith("/page/")):
            self._send(200, (PAGE / name).read_bytes(), TYPES[Path(name).suffix])
        else:
            self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        server = self.server
        if server.token is not None and self.headers["Authorization"] != f"Bearer {server.token}":
            self._json(401, {"error": {"message": "This needs the header 'Authorization: Bearer TOKEN'."}})
            return
        server.requests.append((self.path, body))
        if self.path in server.answers:
            self._json(*server.answers[self.path])
        elif self.path == "/v1/describe":
            self._json(200, server.description)
        elif self.path == "/v1/caption" and body.get("stream"):
            self._stream()
        elif self.path == "/v1/caption":
            words = [{"text": word, "map": peak(2, 0)} for word in ("two", "beams")]
            self._json(200, {"captions": [{"text": "two beams.", "score": -1, "log_prob": -1, "parts": words}]})
        elif self.path == "/v1/similarity":
            self._json(200, {"cosine": len(body["text"]) / 100, "map": peak(0, 2)})
        elif self.path == "/v1/search":
            found = [
                {"path": f"a/{row}.png", "score": 0.9 - row / 10, "row": row, "thumbnail": f"/v1/thumbnails/{row}"}
                for row in range(min(body["k"], len(COLOURS)))
            ]
            self._json(200, {"results": found})
        else:
            content = io.BytesIO()
            Image.new("RGB", (24, 16), COLOURS[int(self.path.rpartition("/")[2])]).save(content, "JPEG")
            self._send(200, content.getvalue(), "image/jpeg")

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number, text in enumerate(PARTS):
            time.sleep(self.server.pause)
            if number == self.server.breaks:
                self._event({"error": {"message": "The server failed; its log says where."}})
                break
            self._event(
                {
                    "text": text,
                    "map": peak(number // 3, number % 3) if self.server.description["attention_map"] else None,
                }
            )
        else:
            self._event({"done": True, "text": "".join(PARTS)})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())

    def _json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(content)
