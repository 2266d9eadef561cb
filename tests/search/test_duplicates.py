"""Groups of duplicates: as a comparison of all pairs says, and the best image of each is kept."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from photos import write_image

from velm.errors import SearchError
from velm.search import Index, duplicates
from velm.search.duplicates import find_duplicates


def components(vectors: np.ndarray, threshold: float) -> set[frozenset[int]]:
    """Groups of at least two rows that pairs join."""
    near = vectors @ vectors.T >= threshold
    groups = []
    for row in range(len(vectors)):
        together = [group for group in groups if any(near[row, other] for other in group)]
        groups = [group for group in groups if group not in together] + [{row}.union(*together)]
    return {frozenset(group) for group in groups if len(group) > 1}


@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.99])
def test_groups_are_those_of_all_pairs(follow, photos, tmp_path, monkeypatch, threshold):
    monkeypatch.setattr(duplicates, "BLOCK", 3)
    for seed in range(100, 112):
        write_image(photos / f"{seed}.png", seed)
    follow()
    (photos / "3.png").unlink()
    follow()
    index = Index.open(tmp_path / "index")
    live = [row for row in range(index.rows) if index.name(row) != "3.png"]
    vectors = np.stack([index.vector(row) for row in live]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = {frozenset(live[i] for i in group) for group in components(vectors, threshold)}
    found = find_duplicates(index, threshold)
    assert {frozenset(copy.row for copy in (group.kept, *group.others)) for group in found} == expected


def test_equal_files_are_duplicates_and_the_largest_is_kept(follow, photos, tmp_path):
    shutil.copy2(photos / "0.png", photos / "copy.png")
    write_image(photos / "large.png", seed=1, width=240, height=200)
    write_image(photos / "heavy.bmp", seed=2)
    follow()
    equal = {group.kept.path: group.others for group in find_duplicates(Index.open(tmp_path / "index"), 1.0)}
    assert [copy.path for copy in equal["0.png"]] == ["copy.png"]
    groups = {group.kept.path: group for group in find_duplicates(Index.open(tmp_path / "index"), 0.999)}
    assert (groups["large.png"].kept.width, groups["large.png"].kept.height) == (240, 200)
    assert "1.png" in [copy.path for copy in groups["large.png"].others]
    assert "2.png" in [copy.path for copy in groups["heavy.bmp"].others]


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, float("nan")])
def test_a_threshold_that_is_no_cosine(index, threshold):
    with pytest.raises(SearchError, match="is no cosine of duplicates; it is above 0 and at most 1"):
        find_duplicates(index, threshold)
