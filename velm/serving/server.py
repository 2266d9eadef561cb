"""Runs the server: the socket, the process' signals, and the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from types import FrameType

import uvicorn

from velm.errors import ServingError
from velm.serving.app import create_app
from velm.serving.service import Loaded, Service
from velm.serving.settings import Settings

__all__ = ["run"]


class _Server(uvicorn.Server):
    """Drains at the first SIGTERM or SIGINT: answers probes, refuses requests, stops when accepted ones are done."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.deadline is not None and sig == signal.SIGINT:  # a second Ctrl+C
            self.should_exit = self.force_exit = True
        elif self.deadline is None:
            self.deadline = time.monotonic() + self.service.settings.drain_s
            self.service.state = "draining"

    async def on_tick(self, counter: int) -> bool:
        idle = self.service.active == 0 and self.service.batcher.taken == 0
        if self.deadline is not None and (idle or time.monotonic() > self.deadline):
            self.should_exit = True
        return await super().on_tick(counter)


def run(settings: Settings, load: Callable[[], Loaded]) -> None:
    """Serve until SIGTERM or SIGINT; then accepted requests are answered first.

    Args:
        load: opens the model; until it has returned, requests are answered 503.

    Raises:
        ServingError: the port cannot be used.
        VelmError: whatever `load` raised.
    """
    listener = _listen(settings.host, settings.port)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", message=".*are longer than the .* tokens")  # the answer's `usage.cut` says it
    failures: list[Exception] = []

    async def serve() -> None:
        def fail(error: Exception) -> None:
            failures.append(error)
            server.should_exit = True

        def announce() -> None:
            print(f"velm serve: {settings.name} at {_url(listener)}", file=sys.stderr, flush=True)

        service = Service(settings, load, announce, fail)
        config = uvicorn.Config(
            create_app(service), http="h11", ws="none", lifespan="off", access_log=False, log_level="warning",
            server_header=False, proxy_headers=False, timeout_keep_alive=75, timeout_graceful_shutdown=5,
        )  # fmt: skip
        server = _Server(config, service)
        async with service:
            await server.serve(sockets=[listener])

    asyncio.run(serve())
    if failures:
        raise failures[0]


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        ServingError: the port is in use or not allowed, or the host is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, OverflowError) as error:
        raise ServingError(
            f"Cannot listen on port {port} of {host}: {getattr(error, 'strerror', None) or error}. Choose another with "
            "--port (0 takes a free one) or --host, or stop what listens there."
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
