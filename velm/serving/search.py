"""POST /v1/search and GET /v1/thumbnails/{row}."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from velm.errors import RequestError, SearchError
from velm.search import Index
from velm.serving.bodies import Search
from velm.serving.describe import check_model, check_text
from velm.serving.engine import ALONE
from velm.serving.images import opened_of, thumbnail
from velm.serving.service import Service

__all__ = ["add_routes"]


def add_routes(app: FastAPI, service: Service) -> None:
    """Add POST /v1/search and GET /v1/thumbnails/{row}."""

    @app.post("/v1/search")
    async def search(body: Search) -> Response:
        index, pipeline = _index(service), service.model.engine.pipeline
        check_model(service, body.model)
        for name in ("text", "minus"):
            if getattr(body, name) is not None:
                check_text(service, getattr(body, name), name)
        parts: dict[str, Any] = {"text": body.text, "minus": body.minus}
        with service.batcher.place() as place:
            if body.image is not None:
                most = service.settings.max_pixels
                parts["image"] = await service.read(opened_of, body.image, "image", pipeline.transform, most)
            [query] = await place.submit([(ALONE, lambda: index.query(pipeline, **parts))])
            [matches] = await service.read(index.search, query, body.k)
        return JSONResponse(
            {"results": [{**match._asdict(), "thumbnail": f"/v1/thumbnails/{match.row}"} for match in matches]}
        )

    @app.get("/v1/thumbnails/{row}")
    async def show(row: str) -> Response:
        index = _index(service)
        if not row.isascii() or not row.isdigit() or len(row) > 12:
            raise RequestError(f"{row!r:.40} is not the number of a row.", 404, kind="not_found")
        try:
            path = index.path(int(row))
        except SearchError as error:
            raise RequestError(
                f"There is no row {int(row)}; the index has {index.rows}.", 404, kind="not_found"
            ) from error
        content = await service.read(thumbnail, path, service.settings.max_pixels)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _index(service: Service) -> Index:
    """The index of the server; RequestError, 404, if it has none."""
    index = service.model.index
    if index is None:
        raise RequestError("This server has no index to search; start it with --index.", 404, kind="not_found")
    return index
