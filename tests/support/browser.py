"""A headless Chromium for tests of HTML pages, driven by the DevTools protocol over two pipes, without a package.

`chromium --remote-debugging-pipe` reads JSON from file descriptor 3 and writes to 4, each message ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT = 60.0  # seconds for an answer
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--window-size=1280,900",
)  # fmt: skip
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}


def find_browser() -> str | None:
    """The path of an installed Chromium; None if there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page. `problems` collects console warnings, uncaught errors and network requests.

    Args:
        program: path of the executable.
        profile: a new folder.
        origin: requests to URLs that begin with it are no problem.
    """

    def __init__(self, program: str, profile: Path, origin: str | None = None) -> None:
        self.allowed = ("file:", "data:") if origin is None else ("data:", f"blob:{origin}", origin)
        self.reads, theirs_write = os.pipe()
        theirs_read, self.writes = os.pipe()

        def place() -> None:
            a, b = os.dup(theirs_read), os.dup(theirs_write)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place,
            pass_fds=(3, 4, theirs_read, theirs_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self.buffer, self.number = b"", 0
        self.session: dict[str, str] = {}
        self.problems: list[str] = []
        self.events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.reads)
        os.close(self.writes)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, path: Path) -> None:
        """Load a file and wait for its load event."""
        self.visit(path.resolve().as_uri())

    def visit(self, url: str) -> None:
        """Load a page and wait for its load event."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self.events:
            self._receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """The first true value of a JavaScript expression, evaluated again and again."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.03)
        return value

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Press keys: names of `KEYS`, or characters. `modifiers`: 8 is Shift."""
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            code = {"windowsVirtualKeyCode": KEYS[key]} if key in KEYS else {}
            event = {"key": key, "modifiers": modifiers, **code}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def emulate(self, *, dark: bool = False, width: int | None = None, height: int = 900) -> None:
        """Set the colour scheme, and the size of the window in CSS pixels."""
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        if width is not None:
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            self.call("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reads], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self.reads, 1 << 16) if ready else b""
            assert part, "the browser does not answer"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        event, params = message.get("method", ""), message.get("params", {})
        self.events.append(event)
        if (
            event == "Runtime.exceptionThrown"
            or (event == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"))
            or (event == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"))
            or (event == "Network.requestWillBeSent" and not params["request"]["url"].startswith(self.allowed))
        ):
            self.problems.append(json.dumps(params))
        return message
