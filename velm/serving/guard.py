"""The outermost layer: who may ask, how much they may send, and when; before anything of a body is parsed."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any

from velm.errors import RequestError
from velm.serving.bodies import failure
from velm.serving.service import Service
from velm.serving.settings import is_loopback

__all__ = ["Guard"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_HEADERS = 16 << 10  # bytes
BODY_SECONDS = 30.0  # longest time that a body takes to arrive
BODIES = 8  # bodies of `max_body` bytes that are in memory at a time
LINGER = 1.0  # seconds in which a refused body is read and dropped, so that its sender reads the answer
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
OPEN = ("/healthz", "/readyz")

_log = logging.getLogger("velm.serving")


class Guard:
    """ASGI middleware around the routes.

    Args:
        app: the routes.
        service: the state of the server.
        pages: paths of the page's files, which need no token.
        routes: paths as metrics state them; all others are counted as 'other'.
    """

    def __init__(self, app: Any, service: Service, pages: Collection[str], routes: Collection[str]) -> None:
        self.app, self.service, self.routes = app, service, frozenset(routes)
        self.open = frozenset((*OPEN, *pages))
        self.held = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # of a WebSocket: the server answers 403
        service, started, status = self.service, time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *(h for h in added if h[0] not in names)]}
            await send(message)

        service.active += 1
        service.metrics.active.inc()
        try:
            await self._answer(scope, receive, sending)
        except Exception as error:  # not its message, which may hold what was sent
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("%s %s: %s\n%s", scope["method"], scope["path"], type(error).__name__, trace)
            if not status:
                problem = RequestError("The server failed; its log says where.", 500, kind="server_error")
                await failure(problem)(scope, receive, sending)
        finally:
            service.active -= 1
            service.metrics.active.dec()
            route = self._route(scope["path"])
            service.metrics.requests.labels(route, str(status or 499)).inc()  # 499: the client went away, as nginx says
            service.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _route(self, path: str) -> str:
        if path.startswith("/v1/thumbnails/"):
            return "/v1/thumbnails/{row}"
        return path if path in self.routes else "other"

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        held = 0
        try:
            try:
                self._check(scope)
                body = bytearray()
                async for chunk in _chunks(receive, time.monotonic() + BODY_SECONDS):
                    held += len(chunk)
                    self.held += len(chunk)
                    self._check_size(held)
                    body += chunk
            except RequestError as error:
                await _refuse(error, scope, receive, send)
                return
            except ConnectionError:
                return
            await self._serve(scope, bytes(body), receive, send)
        finally:
            self.held -= held

    def _check(self, scope: MutableMapping[str, Any]) -> None:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), value)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            raise RequestError(f"The headers have more than {MAX_HEADERS} bytes.", 431)
        settings = self.service.settings
        if settings.token is None and not settings.no_token and not _is_local(headers.get(b"host", b"")):
            raise RequestError(
                "Without a token, the server answers to the names localhost, 127.0.0.1 and [::1] only (a page of the "
                "web could use it otherwise). Start it with --token to use it by another name.",
                403,
                kind="forbidden",
            )
        if scope["path"] not in self.open:
            self._check_token(headers.get(b"authorization", b""))
            if self.service.state == "draining" and scope["path"] != "/metrics":
                raise RequestError("The server is stopping; ask another one.", 503, kind="not_ready")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise RequestError("Content-Length is not a number.")
        self._check_size(int(length))

    def _check_token(self, header: bytes) -> None:
        if self.service.settings.token is None:
            return
        scheme, _, token = header.partition(b" ")
        right = hmac.compare_digest(token.strip(), self.service.settings.token.encode())
        if scheme.lower() != b"bearer" or not right:
            raise RequestError("This needs the header 'Authorization: Bearer TOKEN'.", 401, kind="unauthorized")

    def _check_size(self, size: int) -> None:
        most = self.service.settings.max_body
        if size > most:
            raise RequestError(f"The body has more than {most} bytes, the limit; send fewer or smaller images.", 413)
        if self.held > BODIES * most:
            raise RequestError("The server is reading too many bodies; try again in a moment.", 503, kind="overloaded")

    async def _serve(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        """Run the routes on a body that is whole; cancel them when the client goes away."""
        gone = asyncio.ensure_future(_disconnected(receive))
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await asyncio.shield(gone)

        work = asyncio.ensure_future(self.app(scope, replay, send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (gone, work):
                task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await work


async def _chunks(receive: Receive, end: float) -> Any:
    """The parts of a body.

    Raises:
        ConnectionError: the client went away.
        RequestError: 408, it took too long.
    """
    more = True
    while more:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise RequestError(f"The body did not arrive within {BODY_SECONDS:g} seconds.", 408) from error
        if message["type"] == "http.disconnect":
            raise ConnectionError
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _disconnected(receive: Receive) -> Message:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


async def _refuse(error: RequestError, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answer before the body was read, and read what is still sent for a moment; then the connection is closed."""
    headers = {"Connection": "close", **({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})}
    response = failure(error, headers)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(RequestError, ConnectionError):
        async for _ in _chunks(receive, time.monotonic() + LINGER):
            pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_local(host: bytes) -> bool:
    """Whether a Host header names this machine."""
    name = host.decode("latin-1")
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return is_loopback(name)
