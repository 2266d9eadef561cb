"""POST /v1/caption: captions of images and texts, at once or in parts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse

from velm.errors import PipelineError, RequestError, VelmError
from velm.generation import GenerationConfig
from velm.pipeline import Pipeline
from velm.serving.batcher import Place
from velm.serving.bodies import Captions, error_content
from velm.serving.describe import MAX_BEAMS, MAX_PHRASES, check_model, check_text
from velm.serving.embeddings import read_image
from velm.serving.engine import ALONE, Source, caption_kind
from velm.serving.service import Service

__all__ = ["add_routes"]

_PHRASES = ("forbidden", "must_include", "answers")


def add_routes(app: FastAPI, service: Service) -> None:
    """Add POST /v1/caption."""

    @app.post("/v1/caption")
    async def caption(body: Captions) -> Response:
        engine = service.model.engine
        check_model(service, body.model)
        if body.text is not None:
            check_text(service, body.text, "text")
        engine.check_source(body.image, body.text)
        config = await service.read(_config, service, body)
        with service.batcher.place() as place:
            pixels = None if body.image is None else await read_image(service, body.image, "image")
            source = Source(pixels, body.text)
            if body.stream:
                return _Events(service, source, config, body.maps)
            [found] = await place.submit([(caption_kind(config), source)])
            captions: list[dict[str, Any]] = [{"text": each.text, **each.numbers} for each in found]
            if body.maps:
                for each in captions:
                    each["parts"] = await _parts(service, place, source, each["text"])
        return JSONResponse({"captions": captions, "model": service.settings.name})


class _Events(Response):
    """A caption as server-sent events; it has a place until they end or their reader goes away."""

    def __init__(self, service: Service, source: Source, config: GenerationConfig, maps: bool) -> None:
        super().__init__()
        self.service, self.source, self.config, self.maps = service, source, config, maps

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self.service.batcher.place() as place:
            place.arrive()
            events = _events(self.service, place, self.source, self.config, self.maps)
            headers = {"X-Accel-Buffering": "no"}  # nginx passes each event on at once
            await StreamingResponse(events, media_type="text/event-stream", headers=headers)(scope, receive, send)


async def _events(
    service: Service, place: Place, source: Source, config: GenerationConfig, maps: bool
) -> AsyncIterator[str]:
    """The parts of a caption; each is a turn of its own in the batcher, so that other requests take theirs between."""
    whole = ""
    parts: Iterator[dict[str, Any]] = service.model.engine.parts(source, config, maps)
    try:
        while (part := (await place.submit([(ALONE, lambda: next(parts, None))]))[0]) is not None:
            whole += part["text"]
            yield _event(part)
        yield _event({"done": True, "text": whole})
    except Exception as error:
        if not isinstance(error, VelmError):
            error = RequestError("The server failed; its log says where.", 500, kind="server_error")
        yield _event({"error": error_content(error)})
    yield "data: [DONE]\n\n"


async def _parts(service: Service, place: Place, source: Source, text: str) -> list[dict[str, Any]]:
    """The words of a caption with their maps."""
    if not text:
        return []
    [words] = await place.submit([(ALONE, lambda: service.model.engine.maps(source, text))])
    return [{"text": word, "map": grid} for word, grid in words]


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"


def _config(service: Service, body: Captions) -> GenerationConfig:
    """The options of a request, within the limits of the server.

    Raises:
        RequestError: an option is unknown, ill-typed or out of range.
    """
    pipeline, options = service.model.engine.pipeline, dict(body.model_extra or {})
    _check_limits(pipeline, options)
    for name in _PHRASES:
        for i, phrase in enumerate(options.get(name) or ()):
            check_text(service, phrase, f"{name}.{i}")
    if options.get("prefix") is not None:
        check_text(service, options["prefix"], "prefix")
    try:
        return pipeline.stream_config(**options) if body.stream else pipeline.generation_config(**options)
    except PipelineError as error:
        raise RequestError(str(error), param=next((name for name in options if name in str(error)), None)) from error


def _check_limits(pipeline: Pipeline, options: dict[str, Any]) -> None:
    """Refuse values of another type than a number or a list of texts, and those that cost too much."""
    for name, value in options.items():
        if name in _PHRASES:
            listed = isinstance(value, list) and all(isinstance(each, str) for each in value)
            if value is not None and not (listed and len(value) <= MAX_PHRASES):
                raise RequestError(f"{name} takes a list of at most {MAX_PHRASES} texts.", param=name)
        elif name == "prefix":
            if not isinstance(value, str | None):
                raise RequestError("prefix takes a text.", param=name)
        elif isinstance(value, int) and abs(value) > 1 << 31:
            raise RequestError(f"{name} is out of range.", param=name)
    most = {"num_beams": MAX_BEAMS, "num_return": MAX_BEAMS, "max_length": pipeline.max_length - 1}
    for name, limit in most.items():
        value = options.get(name)
        if isinstance(value, int | float) and value > limit:
            raise RequestError(f"{name} {value} is more than this server computes, {limit}.", param=name)
