"""The routes of `velm serve`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from velm.errors import RequestError, VelmError
from velm.serving import captions, describe, embeddings, search
from velm.serving.bodies import failure, request_error
from velm.serving.guard import Guard
from velm.serving.service import Service

__all__ = ["create_app"]

PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class _Request(Request):
    """A request whose JSON holds no NaN or infinity, which Python's parser would accept."""

    async def json(self) -> Any:
        try:
            return json.loads(await self.body(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise RequestError(f"The body is not JSON: {reason[:200]}.") from error


class _Route(APIRoute):
    """Passes errors of reading the body on as they are."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Any]]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def handle(request: Request) -> Any:
            try:
                return await handler(_Request(request.scope, request.receive))
            except HTTPException as error:
                if isinstance(error.__cause__, RequestError):
                    raise error.__cause__ from None
                raise

        return handle


def create_app(service: Service) -> Guard:
    """The ASGI application of a service."""
    app = FastAPI(title="VELM", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.route_class = _Route
    _add_state(app, service)
    for module in (describe, embeddings, captions, search):
        module.add_routes(app, service)
    _add_errors(app)
    routes = [route.path for route in app.routes if isinstance(route, APIRoute)]
    pages = _add_page(app)
    return Guard(app, service, pages, [*routes, *pages])


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def alive() -> Response:
        return JSONResponse({"status": "alive"})

    @app.get("/readyz")
    async def ready() -> Response:
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.CONTENT_TYPE})


def _add_page(app: FastAPI) -> list[str]:
    """Routes of the page, / and /page/NAME of its other files; returns their paths."""
    folder = files("velm.serving") / "page"
    paths = []
    for file in folder.iterdir() if folder.is_dir() else ():
        kind = PAGE_TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            paths.append("/" if file.name == "index.html" else f"/page/{file.name}")
            app.router.add_route(paths[-1], _sender(file.read_bytes(), f"{kind}; charset=utf-8"), methods=["GET"])
    return paths


def _sender(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(content, headers={"Content-Type": kind})

    return send


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(VelmError)
    async def answer_error(request: Request, error: VelmError) -> Response:
        return failure(error if isinstance(error, RequestError) else RequestError(str(error)))

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(request: Request, error: RequestValidationError) -> Response:
        return failure(request_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def answer_http(request: Request, error: HTTPException) -> Response:
        kind = "not_found" if error.status_code == 404 else "invalid_request_error"
        return failure(RequestError(f"{error.detail}.", error.status_code, kind=kind), error.headers)

    @app.exception_handler(Exception)
    async def answer_failure(request: Request, error: Exception) -> Response:
        return failure(RequestError("The server failed; its log says where.", 500, kind="server_error"))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
