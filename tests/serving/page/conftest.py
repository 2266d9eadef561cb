"""A browser that shows the page of a server with fixed answers."""

from __future__ import annotations

import pytest
from browser import Browser, find_browser
from page_server import PageServer
from page_visit import Visit


@pytest.fixture(scope="module")
def server():
    server = PageServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def window(server, tmp_path_factory):
    with Browser(find_browser(), tmp_path_factory.mktemp("profile"), server.origin) as browser:
        yield browser


@pytest.fixture
def page(window, server, tmp_path):
    window.emulate(width=1400)
    page = Visit(window, server.origin, tmp_path, server)
    page.open()
    yield page
    page.run("sessionStorage.clear()")
    problems, window.problems = window.problems, []
    assert problems == []
