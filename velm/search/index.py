"""`Index`, images as normalised vectors that are found by a text, an image, or both."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from velm.errors import SearchError
from velm.inputs import ImageInput
from velm.pipeline import Pipeline, model_hash
from velm.search.exact import top_k
from velm.search.store import OK, read_about, read_parts, read_rows

__all__ = ["Index", "Match"]

WEIGHTS = {"text": 1.0, "image": 1.0, "minus": 1.0}
"""Of the parts of a query."""


class Match(NamedTuple):
    """An image that was found.

    Attributes:
        path: from the root of the index; `Index.path(row)` is the file.
        score: cosine with the query, in [-1, 1].
        row: in the index, as it was opened.
    """

    path: str
    score: float
    row: int


class Index:
    """A snapshot of an index on the disk: updates made after `open` are not seen.

    Attributes:
        folder: of the index.
        about: the content of index.json.
        model: the hash of the model that made the vectors, see `velm.pipeline.model_hash`.
        dim: of the vectors.
        root: the folder that was indexed; '' where rows have paths of their own.
    """

    def __init__(self, folder: Path, about: dict[str, Any], vectors: list[np.ndarray], tables: list[Any]) -> None:
        self._approximate: Any = None
        self.folder, self.about, self.vectors = folder, about, vectors
        self.model: str = about["model"]
        self.dim: int = about["dim"]
        self.root: str = about["root"]
        import pyarrow.compute as pc

        self._paths = [table.column("image_path") for table in tables]
        self.live = [np.array(pc.equal(table.column("status"), OK)) for table in tables]
        self._starts = np.cumsum([0, *map(len, vectors)])

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Index:
        """The index in a folder that `velm index` wrote.

        Raises:
            SearchError: there is none, or it is damaged or from a newer VELM.
        """
        place = Path(folder).expanduser()
        about = read_about(place)
        tables = [read_rows(place, part, ["image_path", "status"]) for part in about["parts"]]
        return cls(place, about, read_parts(place, about), tables)

    def __len__(self) -> int:
        """Number of images that can be found."""
        return int(sum(alive.sum() for alive in self.live))

    @property
    def rows(self) -> int:
        """Number of rows, those of bad and deleted images included."""
        return int(self._starts[-1])

    def name(self, row: int) -> str:
        """The path of a row as it is stored: from the root, with '/'.

        Raises:
            SearchError: there is no such row.
        """
        if not 0 <= row < self.rows:
            raise SearchError(f"The index {self.folder} has no row {row}; it has {self.rows}, from 0.")
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return str(self._paths[part][row - int(self._starts[part])].as_py())

    def vector(self, row: int) -> np.ndarray:
        """float16 (E,) of a row that exists."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        vector: np.ndarray = self.vectors[part][row - int(self._starts[part])]
        return vector

    def path(self, row: int) -> str:
        """The file of a row; SearchError if there is no such row. The name, where the dataset has no files."""
        return os.path.join(self.root, self.name(row))

    def check_model(self, pipeline: Pipeline) -> None:
        """Raise SearchError unless this pipeline's model made the vectors."""
        found = model_hash(pipeline)
        if found != self.model:
            raise SearchError(
                f"The index {self.folder} is of another model: of {self.about['checkpoint']} with the hash "
                f"{self.model[:12]}, and this model has {found[:12]}. Their embeddings cannot be compared. Give that "
                f"checkpoint (--checkpoint), or index the images with this model under another --output."
            )

    def query(
        self,
        pipeline: Pipeline,
        *,
        text: str | None = None,
        image: ImageInput | None = None,
        minus: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Tensor:
        """The vector of a query, float (E,), L2-normalised: text + image - minus, each normalised, then weighted.

        Args:
            pipeline: checked with `check_model` before.
            text: what to find.
            image: an image to resemble.
            minus: a text to be far from.
            weights: of 'text', 'image' and 'minus', each at least 0 and finite; default 1.

        Raises:
            SearchError: there is neither text nor image, a weight cannot be used, or the parts cancel out.
            PipelineError, DataError: the model does not align, a text is empty, or the image cannot be read.
        """
        weight = {**WEIGHTS, **check_weights(weights or {})}
        if text is None and image is None:
            raise SearchError("Nothing to search for: give a text, an image, or both.")
        total = torch.zeros(self.dim)
        texts = {"text": text, "minus": minus}
        for name, content in texts.items():
            if content is not None:
                vector = functional.normalize(pipeline.embed_texts([content])[0].float(), dim=0)
                total += (-weight[name] if name == "minus" else weight[name]) * vector
        if image is not None:
            total += weight["image"] * functional.normalize(pipeline.embed_images([image])[0].float(), dim=0)
        if total.norm() < 1e-6:
            raise SearchError(
                "The parts of the query cancel out, so that nothing is left to search for; change a weight."
            )
        return functional.normalize(total, dim=0)

    def search(self, queries: Tensor, k: int = 20, *, ann: str | None = None) -> list[list[Match]]:
        """The k images with the largest cosines to each query, best first; ties in the order of the rows.

        Args:
            queries: float (Q, E), L2-normalised; a single (E,) counts as one.
            k: at least 1; fewer are found in a smaller index.
            ann: 'hnsw' or 'ivfpq', to search in what `velm index --ann` wrote: faster, and not all of the nearest are
                found. None: exact.

        Raises:
            SearchError: k or the width of the queries cannot be used, or there is no such approximate index.
            MissingPackageError: faiss is not installed.
        """
        queries = self._checked(queries, k)
        if ann is None:
            return self._matches(top_k(self.vectors, self.live, queries, k))
        if self._approximate is None or self._approximate.kind != ann:
            from velm.search.approximate import Approximate

            self._approximate = Approximate.open(self.folder, ann, self.about, self.vectors, self.live)
        return self._matches(self._approximate.search(queries, k))

    def _checked(self, queries: Tensor, k: int) -> Tensor:
        """The queries as float (Q, E); SearchError if they or k cannot be used."""
        if k < 1:
            raise SearchError(f"k {k} is too small; it is at least 1.")
        queries = torch.atleast_2d(torch.as_tensor(queries)).float()
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise SearchError(
                f"The queries have the shape {tuple(queries.shape)}; the index has {self.dim} dimensions."
            )
        return queries

    def _matches(self, found: Sequence[Sequence[tuple[int, float]]]) -> list[list[Match]]:
        """(row, score) of each query as `Match`."""
        return [[Match(self.name(row), score, row) for row, score in of_query] for of_query in found]


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights; SearchError if one is unknown, negative or not finite."""
    for name, value in weights.items():
        if name not in WEIGHTS:
            raise SearchError(f"Unknown weight {name!r}; there are {', '.join(WEIGHTS)}.")
        if not 0 <= value < float("inf"):
            raise SearchError(f"The weight {name}={value} cannot be used; it is at least 0 and finite.")
    return dict(weights)
