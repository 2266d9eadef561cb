"""One visit of the page of `velm serve`, as a user makes it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from browser import Browser
from page_server import PARTS, PageServer
from PIL import Image

CAPTION = "".join(PARTS)
IDLE = "!document.querySelector('[aria-busy]')"
TEXT = "document.getElementById('{}').textContent"


class Visit:
    """One visit of the page.

    Args:
        browser: shows it.
        origin: URL of its server.
        folder: for the files that the user has.
        server: with fixed answers, which `open` changes; None: the server of `origin` is another.
    """

    def __init__(self, browser: Browser, origin: str, folder: Path, server: PageServer | None = None) -> None:
        self.browser, self.origin, self.folder, self.server = browser, origin, folder, server
        self.run, self.wait, self.press = browser.run, browser.wait, browser.press

    def visit(self) -> None:
        self.browser.visit(self.origin + "/")
        self.run("""window.said = []; for (const id of ['status', 'alert', 'map-text'])
            new MutationObserver(() => said.push([id, document.getElementById(id).textContent]))
            .observe(document.getElementById(id), {childList: true, subtree: true, characterData: true})""")

    def open(self, **description: Any) -> None:
        self.server.reset(**description)
        self.visit()
        self.wait("!document.getElementById('parts').hidden")

    def text(self, name: str) -> str:
        return self.run(TEXT.format(name)).strip()

    def file(self, size: tuple[int, int] = (48, 32), name: str = "scene.png") -> str:
        path = self.folder / name
        Image.new("RGB", size, (240, 240, 240)).save(path)
        return str(path)

    def drop(self, path: str) -> None:
        x, y = self.run("(({x, y}) => [x + 20, y + 20])(document.getElementById('stage').getBoundingClientRect())")
        data = {"items": [], "files": [path], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.browser.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def captioned(self) -> None:
        self.drop(self.file())
        self.wait(f"{TEXT.format('caption')} === {json.dumps(CAPTION)} && {IDLE}")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, name: str, text: str) -> None:
        self.run(f"document.getElementById('{name}').focus(); document.getElementById('{name}').select?.()")
        self.browser.call("Input.insertText", text=text)

    def submit(self, name: str) -> None:
        self.run(f"document.getElementById('{name}').requestSubmit()")
        self.wait(IDLE)

    def alpha(self) -> np.ndarray:
        """Opacity of the map's canvas, uint8 (H, W)."""
        values = self.run("""(() => { const c = document.getElementById('map'); if (c.hidden) return null;
            const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            return [c.height, c.width, [...data].filter((_, i) => i % 4 === 3)]; })()""")
        assert values is not None, "no map is shown"
        return np.array(values[2], dtype=np.uint8).reshape(values[:2])

    def refused(self, status: int) -> None:
        """Remove the browser's note of an answer with this status; there has to be one."""
        kept = [problem for problem in self.browser.problems if f"responded with a status of {status}" not in problem]
        assert len(kept) < len(self.browser.problems)
        self.browser.problems[:] = kept


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
