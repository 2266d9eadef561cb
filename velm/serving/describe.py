"""GET /v1/describe: what this model can do, and the limits of the server."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from velm.errors import RequestError
from velm.generation import GenerationConfig
from velm.pipeline import Pipeline
from velm.serving.service import Loaded, Service
from velm.version import __version__

__all__ = ["MAX_BEAMS", "MAX_PHRASES", "add_routes", "check_model", "check_text"]

MAX_BEAMS = 16
MAX_PHRASES = 100  # of `forbidden`, `must_include` and `answers` each


def add_routes(app: FastAPI, service: Service) -> None:
    """Add GET /v1/describe."""

    @app.get("/v1/describe")
    async def describe() -> Response:
        return JSONResponse(_described(service, service.model))


def check_model(service: Service, name: str | None) -> None:
    """Raise RequestError, 404, if a request names another model than this one."""
    own = service.settings.name
    if name is not None and name != own:
        raise RequestError(
            f"The model {name!r:.100} is not here; this is {own!r}.", 404, kind="model_not_found", param="model"
        )


def check_text(service: Service, text: str, param: str) -> str:
    """The text; raises RequestError if it is empty or too long."""
    most = service.settings.max_text
    if not text.strip():
        raise RequestError(f"{param} is empty; it takes text.", param=param)
    if len(text) > most:
        raise RequestError(f"{param} has {len(text)} characters; the limit is {most}.", param=param)
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(f"{param} has half of a surrogate pair, which is no character.", param=param)
    return text


def _described(service: Service, loaded: Loaded) -> dict[str, Any]:
    engine, settings = loaded.engine, service.settings
    pipeline = engine.pipeline
    transform = None if pipeline.model.image_encoder is None else pipeline.transform
    return {
        "model": settings.name,
        "hash": loaded.hash,
        "version": __version__,
        "dim": pipeline.model.embed_dim if pipeline.aligned else None,
        "captions": pipeline.writes,
        "embeddings": pipeline.aligned,
        "similarity_map": engine.similarity_map,
        "attention_map": engine.attention_map,
        "reads": list(pipeline.model.reads) if pipeline.writes else [],
        "image": None if transform is None else {"size": transform.image_size, "resize": transform.resize},
        "search": None if loaded.index is None else {"images": len(loaded.index)},
        "limits": {
            "body": settings.max_body,
            "pixels": settings.max_pixels,
            "text": settings.max_text,
            "inputs": settings.queue,
            "max_length": pipeline.max_length - 1,
            "beams": MAX_BEAMS,
            "phrases": MAX_PHRASES,
        },
        "options": _options(pipeline) if pipeline.writes else {},
    }


def _options(pipeline: Pipeline) -> dict[str, Any]:
    """The default of each option of generation."""
    defaults = {each.name: each.default for each in fields(GenerationConfig)}
    defaults["max_length"] = pipeline.max_length - 1
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
