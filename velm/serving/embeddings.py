"""POST /v1/embeddings and /v1/similarity."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from velm.errors import RequestError
from velm.pipeline import Pipeline
from velm.serving.batcher import Kind
from velm.serving.bodies import Embeddings, ImagePart, Similarity, TextPart
from velm.serving.describe import check_model, check_text
from velm.serving.engine import IMAGES, SIMILARITY, TEXTS
from velm.serving.images import pixels_of
from velm.serving.service import Service

__all__ = ["add_routes", "read_image"]


def add_routes(app: FastAPI, service: Service) -> None:
    """Add POST /v1/embeddings and /v1/similarity."""

    @app.post("/v1/embeddings")
    async def embed(body: Embeddings) -> Response:
        pipeline = service.model.engine.pipeline
        check_model(service, body.model)
        pipeline.require_alignment()
        _check_dimensions(body.dimensions, pipeline.model.embed_dim)
        inputs = _inputs(service, body)
        with service.batcher.place(len(inputs)) as place:
            rows = await place.submit(await asyncio.gather(*(_read(service, *each) for each in inputs)))
        return JSONResponse(
            {
                "object": "list",
                "model": service.settings.name,
                "data": [
                    {"object": "embedding", "index": i, "embedding": _encoded(row, body.encoding_format)}
                    for i, row in enumerate(rows)
                ],
                "usage": _usage(pipeline, [text for _, text, _ in inputs if text is not None]),
            }
        )

    @app.post("/v1/similarity")
    async def compare(body: Similarity) -> Response:
        check_model(service, body.model)
        service.model.engine.pipeline.require_alignment()
        text = check_text(service, body.text, "text")
        with service.batcher.place() as place:
            pixels = await read_image(service, body.image, "image")
            [(cosine, grid)] = await place.submit([(SIMILARITY, (pixels, text))])
        return JSONResponse({"cosine": _finite(np.array(cosine)).item(), "map": grid})


async def read_image(service: Service, url: str, param: str) -> Any:
    """The pixels of a data URL, decoded in the pool of readers."""
    transform = service.model.engine.pipeline.transform
    return await service.read(pixels_of, url, param, transform, service.settings.max_pixels)


async def _read(service: Service, url: str | None, text: str | None, param: str) -> tuple[Kind, Any]:
    """An input for the batcher."""
    return (TEXTS, text) if url is None else (IMAGES, await read_image(service, url, param))


def _inputs(service: Service, body: Embeddings) -> list[tuple[str | None, str | None, str]]:
    """For each input the URL of its image or its text, and the name of the field."""
    inputs: list[tuple[str | None, str | None, str]] = []
    listed = [body.input] if isinstance(body.input, str) else body.input
    if not 1 <= len(listed) <= service.settings.queue:
        raise RequestError(
            f"input has {len(listed)} texts and images; a request has 1 to {service.settings.queue}.", param="input"
        )
    for i, each in enumerate(listed):
        param = "input" if isinstance(body.input, str) else f"input.{i}"
        if isinstance(each, ImagePart):
            inputs.append((each.image_url.url, None, param))
        else:
            text = each.text if isinstance(each, TextPart) else each
            inputs.append((None, check_text(service, text, param), param))
    return inputs


def _check_dimensions(asked: int | None, dim: int) -> None:
    if asked is not None and asked != dim:
        raise RequestError(
            f"dimensions {asked}: embeddings of this model have {dim}; leave it out.", param="dimensions"
        )


def _encoded(row: np.ndarray, encoding: str) -> list[float] | str:
    """A row for JSON: numbers, or base64 of float32, little endian, which takes a third of the bytes."""
    row = _finite(row).astype("<f4", copy=False)
    return base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist()


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise RequestError("The model computed NaN for this input.", 500, kind="server_error")
    return values


def _usage(pipeline: Pipeline, texts: list[str]) -> dict[str, int]:
    """The number of tokens, and of texts that are cut because they are longer than those of the training."""
    lengths = [len(pipeline.tokenizer.encode(text)) for text in texts]
    tokens = sum(min(length, pipeline.max_length) for length in lengths)
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "cut": sum(length > pipeline.max_length for length in lengths),
    }
