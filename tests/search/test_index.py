"""`Index`: the nearest images of a text, an image, or both; and what cannot be searched."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from velm.errors import DataError, PipelineError, SearchError
from velm.pipeline import load
from velm.search import Index, model_hash


def test_scores_are_the_cosines_of_the_pipeline_to_half_precision(index, pipeline, photos):
    query = index.query(pipeline, text="a red circle")
    (matches,) = index.search(query, k=20)
    assert len(matches) == len(index) == index.rows == 8
    assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
    cosines = pipeline.score([index.path(match.row) for match in matches], ["a red circle"])[:, 0]
    torch.testing.assert_close(torch.tensor([match.score for match in matches]), cosines, atol=2e-3, rtol=0)
    assert {match.path for match in matches} == {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")}


def test_an_image_finds_itself(index, pipeline):
    for row in range(len(index)):
        (matches,) = index.search(index.query(pipeline, image=index.path(row)), k=1)
        assert matches[0].row == row
        assert matches[0].score == pytest.approx(1, abs=2e-3)


def test_a_batch_of_queries_finds_what_each_finds_alone(index, pipeline):
    queries = torch.stack([index.query(pipeline, text=text) for text in ("a red circle", "a star")])
    for query, matches in zip(queries, index.search(queries, k=3), strict=True):
        (alone,) = index.search(query, k=3)
        assert [match.row for match in alone] == [match.row for match in matches]
        assert [match.score for match in alone] == pytest.approx([match.score for match in matches], abs=1e-6)


def test_a_query_of_several_parts_is_their_weighted_sum(index, pipeline):
    image = index.path(0)
    (red, star), own = pipeline.embed_texts(["red", "star"]), pipeline.embed_images([image])[0]
    query = index.query(pipeline, text="red", image=image, minus="star", weights={"image": 2.0, "minus": 0.5})
    expected = torch.nn.functional.normalize(red + 2 * own - 0.5 * star, dim=0)
    torch.testing.assert_close(query, expected)
    torch.testing.assert_close(
        index.query(pipeline, text="red", image=image, weights={"image": 0}), index.query(pipeline, text="red")
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, SearchError, "give a text, an image, or both"),
        ({"minus": "red"}, SearchError, "give a text, an image, or both"),
        ({"text": " "}, PipelineError, "takes text that is not empty"),
        ({"image": "nowhere.jpg"}, DataError, "There is no image 'nowhere.jpg'"),
        ({"text": "red", "minus": "red"}, SearchError, "cancel out"),
        ({"text": "red", "weights": {"txt": 1}}, SearchError, "Unknown weight 'txt'; there are text, image, minus"),
        ({"text": "red", "weights": {"text": -1}}, SearchError, "text=-1 cannot be used; it is at least 0"),
        ({"text": "red", "weights": {"text": float("nan")}}, SearchError, "at least 0 and finite"),
    ],
)
def test_bad_queries(index, pipeline, arguments, error, words):
    with pytest.raises(error, match=words):
        index.query(pipeline, **arguments)


def test_bad_searches(index, pipeline):
    query = index.query(pipeline, text="red")
    with pytest.raises(SearchError, match="k 0 is too small"):
        index.search(query, k=0)
    with pytest.raises(SearchError, match="the index has 8 dimensions"):
        index.search(torch.ones(1, 9))
    with pytest.raises(SearchError, match="has no row 8; it has 8"):
        index.path(8)


def test_another_model_is_refused_for_queries_and_updates(index, follow, write_checkpoint, tmp_path, photos):
    from velm.search import update
    from velm.search.sources import folder_source

    other = load(write_checkpoint("other.ckpt", embed_dim=8, text_encoder={"name": "rnn", "dim": 24}))
    with pytest.raises(SearchError, match=r"is of another model: of tiny.ckpt with the hash"):
        index.check_model(other)
    with pytest.raises(SearchError, match="Update it with that checkpoint"):
        update(other, folder_source(photos), tmp_path / "index")


def test_a_model_has_one_hash_in_each_precision_and_another_with_other_weights(write_checkpoint):
    path = write_checkpoint()
    pipeline = load(path)
    known = model_hash(pipeline)
    assert model_hash(load(path, precision="bf16")) == known
    assert model_hash(load(path, image_size=40)) != known
    with torch.no_grad():
        next(pipeline.model.parameters()).mul_(1.1)
    assert model_hash(pipeline) != known


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "There is no index"),
        (lambda folder: (folder / "index.json").unlink(), "is no index: it has no index.json"),
        (lambda folder: (folder / "index.json").write_text("{"), "is no index.json of VELM"),
        (lambda folder: (folder / "index.json").write_text('{"name": "x"}'), "is no index.json of VELM"),
        (lambda folder: shutil.rmtree(folder / "img_emb"), "is damaged: img_emb_0000000.npy"),
        (lambda folder: _cut(folder / "img_emb" / "img_emb_0000000.npy"), "is damaged: img_emb_0000000.npy"),
        (lambda folder: _cut(folder / "metadata" / "metadata_0000000.parquet"), "is damaged: metadata_0000000.parquet"),
        (lambda folder: _newer(folder / "index.json"), "Upgrade: pip install"),
    ],
)
def test_a_folder_that_is_no_whole_index(index, change, words):
    change(index.folder)
    with pytest.raises(SearchError, match=words):
        Index.open(index.folder)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _newer(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
