"""The bodies of requests, and errors in the shape of OpenAI's protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from velm.errors import RequestError, VelmError

__all__ = [
    "Captions",
    "Embeddings",
    "ImagePart",
    "Search",
    "Similarity",
    "TextPart",
    "error_content",
    "failure",
    "request_error",
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class TextPart(_Body):
    """A text among the inputs of /v1/embeddings."""

    type: Literal["text"]
    text: str


class ImageURL(_Body):
    """A data URL."""

    url: str
    detail: str | None = None


class ImagePart(_Body):
    """An image among the inputs of /v1/embeddings."""

    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Embeddings(_Body):
    """POST /v1/embeddings; `user` and `dimensions` are there for clients of OpenAI's protocol."""

    model: str | None = None
    input: str | list[str | Part]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Captions(_Body):
    """POST /v1/caption; further fields are those of `GenerationConfig`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())

    model: str | None = None
    image: str | None = None
    text: str | None = None
    stream: bool = False
    maps: bool = False


class Similarity(_Body):
    """POST /v1/similarity."""

    model: str | None = None
    image: str
    text: str


class Search(_Body):
    """POST /v1/search."""

    model: str | None = None
    text: str | None = None
    image: str | None = None
    minus: str | None = None
    k: int = Field(default=20, ge=1, le=1000)


def failure(error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer of an error; 503 asks the client to try again in a second."""
    content = {"error": error_content(error)}
    retry = {"Retry-After": "1"} if error.status == 503 else {}
    return JSONResponse(content, error.status, {**retry, **(headers or {})})


def error_content(error: VelmError) -> dict[str, Any]:
    """An error in the shape of OpenAI's protocol."""
    kind, param = getattr(error, "kind", "invalid_request_error"), getattr(error, "param", None)
    return {"message": str(error), "type": kind, "param": param}


def request_error(problems: Sequence[Mapping[str, Any]]) -> RequestError:
    """One error of what pydantic found, without the values that were sent.

    Of the alternatives of a union, that which came closest: the longest path.
    """
    problem = max(problems, key=lambda each: len(each["loc"]))
    place = [part for part in problem["loc"] if part != "body"]
    param = ".".join(str(part) for part in place if isinstance(part, int) or str(part).isidentifier()) or None
    known = ""
    if problem["type"] == "extra_forbidden":
        return RequestError(f"Unknown field {param!r}.", param=param)
    if problem["type"] in ("model_attributes_type", "missing") and not place:
        known = " Send JSON, as Content-Type: application/json."
    return RequestError(f"{param or 'The body'}: {problem['msg']}.{known}", param=param)
