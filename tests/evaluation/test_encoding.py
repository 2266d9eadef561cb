"""Unreadable images are left out of all metrics and named; too many of them are an error."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from evaluations import noise_records
from PIL import Image

from velm.data.bad_samples import BadSample
from velm.data.base import Record, Records
from velm.data.images.transforms import EvalTransform
from velm.errors import BadDataError, DataError
from velm.evaluation.encoding import encode_records, readable_records
from velm.evaluation.evaluate import Extras, evaluate, measure
from velm.evaluation.predictions import predict
from velm.evaluation.probing import image_features, probe_metrics
from velm.pipeline import load


@pytest.fixture
def records(tmp_path):
    """Twelve; of the first batch of four all but one are broken, and the last is, too."""
    found = []
    for i, record in enumerate(noise_records(12, texts=("a red circle", "a blue square"), side=32)):
        path = tmp_path / f"{i:02}.png"
        Image.fromarray(record.image).save(path)
        if i in (0, 1, 3, 11):
            path.write_bytes(path.read_bytes()[:40])
        found.append(Record(record.image_id, str(path), record.texts, metadata={"class": ("red", "blue")[i % 2]}))
    return found


@pytest.fixture
def readable(records):
    return [record for i, record in enumerate(records) if i not in (0, 1, 3, 11)]


@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_metrics_are_those_of_the_readable_images(pipeline, records, readable, batch_size):
    options = {"batch_size": batch_size, "max_length": 3, "rerank": 3}
    extras = Extras(clip_score=True, judge=pipeline, compositional=True, probe=True, train=records, folds=2)
    measured = measure(pipeline, records, max_bad=0.5, extras=extras, **options)
    expected = evaluate(pipeline, readable, extras=Extras(**{**vars(extras), "train": readable}), **options)
    assert measured.metrics.pop("left_out") == 4
    assert measured.metrics == pytest.approx(expected)
    assert list(measured.records) == readable
    assert [row.image_id for row in measured.predictions.captions.rows] == [record.image_id for record in readable]


def test_what_is_left_out_is_named(pipeline, records):
    calls = []
    found = predict(
        pipeline,
        records,
        max_bad=0.5,
        batch_size=3,
        max_length=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert list(found.unreadable) == [0, 1, 3, 11]
    assert found.unreadable[3].path == records[3].image
    assert found.unreadable[3].cause.startswith(f"Cannot read image '{records[3].image}'")
    assert calls == [(3, 12), (6, 12), (9, 12), (12, 12)]
    with pytest.warns(UserWarning, match=r"4 of 12 records are left out: Cannot read .*00\.png.*, \.\.\.$"):
        assert evaluate(pipeline, records, max_bad=0.5, max_length=2)["left_out"] == 4


def test_sound_records_say_nothing_of_it(pipeline, readable):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "left_out" not in evaluate(pipeline, readable, max_length=2)
    assert readable_records(readable, {}) is readable


def test_too_many_end_it_at_the_batch_that_has_them(pipeline, records):
    done = []
    with pytest.raises(BadDataError, match=r"3 of 12 records of the split \(25\.0%\) cannot be used, max_bad is 20"):
        predict(pipeline, records, max_bad=0.2, batch_size=2, max_length=2, progress=lambda n, _: done.append(n))
    assert done == [2]
    with pytest.raises(BadDataError, match=r"max_bad is 1\.0%"):
        evaluate(pipeline, records, max_length=2)
    with pytest.raises(DataError, match=r"max_bad is a fraction of the records, between 0 and 1; got 5"):
        predict(pipeline, records, max_bad=5)


def test_what_opening_found_counts_too(pipeline, readable):
    class Opened(Records):
        bad_samples = (BadSample("row 7", "it has no sentence"),)

        def __len__(self):
            return len(records)

        def record(self, place):
            return records[place]

    records = [*readable, Record("x", "nowhere.png", ("a",))]
    measured = measure(pipeline, Opened(), max_bad=0.2, max_length=2)  # 2 of 10
    assert measured.metrics["left_out"] == 1
    assert measured.records.bad_samples == Opened.bad_samples
    with pytest.raises(BadDataError, match=r"2 of 10 records"):
        measure(pipeline, Opened(), max_bad=0.15, max_length=2)


def test_nothing_readable_is_an_error_for_any_max_bad(pipeline, records):
    broken = [records[i] for i in (0, 1, 3)]
    with pytest.raises(DataError, match=r"None of the 3 records can be read\. The first: Cannot read image"):
        predict(pipeline, broken, max_bad=1.0)


def test_a_record_that_cannot_be_had_is_left_out_like_its_image(pipeline, readable):
    class Torn(Records):
        def __len__(self):
            return 4

        def record(self, place):
            if place == 0:
                raise OSError("the disk is gone")
            return readable[place]

    found = predict(pipeline, Torn(), max_bad=0.5, max_length=2)
    assert found.unreadable == {0: BadSample("record 0", "OSError: the disk is gone", lost=0)}
    with pytest.raises(OSError, match="the disk is gone"):
        list(encode_records(pipeline, Torn(), 2))


def test_a_text_only_model_leaves_nothing_out(write_checkpoint, records):
    blind = load(write_checkpoint(memory=["text"], losses={"captioning": {}}, image_encoder=None))
    rows = [Record(r.image_id, r.image, r.texts, ("one", "two")) for r in records]
    assert not predict(blind, rows, max_length=2).unreadable


def test_features_of_broken_images_are_an_error_unless_they_may_be_missing(pipeline, records):
    with pytest.raises(DataError, match="Cannot read image"):
        image_features(pipeline, records)
    missing: dict[int, BadSample] = {}
    features = image_features(pipeline, records, unreadable=missing, max_bad=0.5, batch_size=5)
    assert (len(features), list(missing)) == (8, [0, 1, 3, 11])
    assert torch.allclose(features[0], image_features(pipeline, [records[2]])[0], atol=1e-5)
    with pytest.raises(BadDataError, match="of the split"):
        probe_metrics(pipeline, records, [records[2]])


def test_what_is_left_out_is_in_order_whichever_thread_found_it_first(pipeline, records, monkeypatch):
    read = EvalTransform.__call__

    def slow_to_fail(self, image):
        if image is records[0].image:
            time.sleep(0.3)
        return read(self, image)

    monkeypatch.setattr(EvalTransform, "__call__", slow_to_fail)
    missing: dict[int, BadSample] = {}
    list(encode_records(pipeline, records, 5, missing, max_bad=0.5))
    assert list(missing) == [0, 1, 3, 11]


def test_the_view_of_what_remains_keeps_what_is_known_of_the_whole(readable):
    class Known(Records):
        classes = ("a", "b")

        def __len__(self):
            return len(readable)

        def record(self, place):
            return readable[place]

    view = readable_records(Known(), {1: BadSample("x", "y")})
    assert view.classes == ("a", "b")
    assert list(view) == [readable[0], *readable[2:]]
    assert view[-1] is readable[-1]
