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


_FIELDS = {"detail", "image_url", "type", "url"}
_INPUT = """input takes a text, or a list of texts and of images as
{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}.""".replace("\n", " ")
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


_FIELDS.update(name for body in (Embeddings, Captions, Similarity, Search) for name in body.model_fields)


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
    named = [part for part in problem["loc"][1:] if isinstance(part, int) or part in _FIELDS]
    place = [part for i, part in enumerate(named) if i == 0 or part != named[i - 1]]  # a tag of a union and its field
    param = ".".join(map(str, place)) or None
    if problem["type"] == "extra_forbidden":
        return RequestError(f"Unknown field {problem['loc'][-1]!r:.100}.", param=param)
    if param is None:
        return RequestError("The body is not a JSON object; send one, with Content-Type: application/json.")
    if place[0] == "input":
        return RequestError(f"{param} cannot be read ({problem['msg']}). {_INPUT}", param=param)
    return RequestError(f"{param}: {problem['msg']}.", param=param)
