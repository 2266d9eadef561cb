"""An approximate index beside the vectors: its scores are exact, and it is never the truth."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from photos import write_image

from velm.errors import MissingPackageError, SearchError
from velm.search import Index
from velm.search.approximate import Approximate, build
from velm.search.exact import top_k
from velm.search.recall import recall_of

ABOUT = {"dim": 16, "generation": 0}


def parts_of(*rows: int) -> list[np.ndarray]:
    vectors = np.random.default_rng(0).standard_normal((sum(rows), 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.split(vectors.astype(np.float16), np.cumsum(rows)[:-1])


def queries(count: int = 5) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(1)), dim=1)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_deleted_rows_are_left_out_and_newer_ones_found(tmp_path, kind):
    pytest.importorskip("faiss")
    parts = parts_of(300, 200, 60)
    build(tmp_path, kind, ABOUT, parts[:2])
    live = [np.random.default_rng(i).random(len(part)) > 0.5 for i, part in enumerate(parts)]
    found = Approximate.open(tmp_path, kind, ABOUT, parts, live).search(queries(), 10)
    exact = top_k(parts, live, queries(), 10)
    alive = np.concatenate(live)
    hits = 0
    for rows, truth in zip(found, exact, strict=True):
        assert len(rows) == 10
        assert all(alive[row] for row, _ in rows)
        scores = dict(truth)
        assert all(scores[row] == pytest.approx(score, abs=1e-6) for row, score in rows if row in scores)
        hits += len({row for row, _ in rows} & set(scores))
    assert hits >= 0.8 * 50
    assert {row for rows in found for row, _ in rows if row >= 500} == {
        row for rows in exact for row, _ in rows if row >= 500
    }


def test_an_index_searches_in_it_until_its_rows_have_other_numbers(follow, photos, tmp_path, pipeline):
    pytest.importorskip("faiss")
    follow()
    index = Index.open(tmp_path / "index")
    build(index.folder, "hnsw", index.about, index.vectors)
    assert recall_of(index, "hnsw") == 1
    query = index.query(pipeline, text="a red circle")
    assert index.search(query, 5, ann="hnsw") == index.search(query, 5)
    (photos / "0.png").unlink()
    write_image(photos / "new.png", seed=50)
    follow()
    index = Index.open(tmp_path / "index")
    assert index.search(query, 9, ann="hnsw") == index.search(query, 9)
    follow(compact=True)
    with pytest.raises(SearchError, match="is older than its compaction"):
        Index.open(tmp_path / "index").search(query, 5, ann="hnsw")


def test_what_cannot_be_built_or_opened(index, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    with pytest.raises(SearchError, match="ivfpq needs at least 256 rows to train with; the index has 8"):
        build(index.folder, "ivfpq", index.about, index.vectors)
    with pytest.raises(SearchError, match="Unknown approximate index 'lsh'; it is hnsw or ivfpq"):
        index.search(torch.eye(8)[:1], ann="lsh")
    with pytest.raises(SearchError, match="has no approximate index hnsw"):
        index.search(torch.eye(8)[:1], ann="hnsw")
    build(index.folder, "hnsw", index.about, index.vectors)
    file = index.folder / "ann" / "hnsw.faiss"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(SearchError, match="is damaged"):
        index.search(torch.eye(8)[:1], ann="hnsw")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'velm\[search\]'"):
        index.search(torch.eye(8)[:1], ann="hnsw")
