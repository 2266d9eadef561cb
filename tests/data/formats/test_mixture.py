from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import csv_table

from velm.data.batches.samples import CaptionSamples
from velm.data.formats.mixture import Mixture, shares
from velm.data.text.bpe import ByteTokenizer
from velm.errors import ConfigError, DataError
from velm.registry import datasets
from velm.testing import assert_contract

SHAPES = {"name": "shapes", "train_size": 6, "val_size": 3, "test_size": 2, "heldout_size": 2}
LARGER = {**SHAPES, "seed": 5, "train_size": 20}


def mixture(**options: Any) -> Mixture:
    return Mixture(**{"sources": {"a": {**SHAPES, "weight": 3}, "b": LARGER}, **options})


def test_each_source_has_its_weights_share_of_an_epoch() -> None:
    train = mixture().split("train")
    counts = Counter(record.image_id.split("/")[0] for record in train)
    assert len(train) == 26
    assert counts == {"a": 20, "b": 6}  # 19.5 and 6.5: the remainders are equal, the first source has it
    assert Counter(r.image_id.split("/")[0] for r in mixture(size=400).split("train")) == {"a": 300, "b": 100}


def test_records_repeat_and_are_left_out_evenly_and_always_alike() -> None:
    train = mixture().split("train")
    times = Counter(record.image_id for record in train)
    a, b = ([n for key, n in times.items() if key.startswith(source)] for source in "ab")
    assert len(a) == 6
    assert set(a) == {3, 4}
    assert len(b) == 6
    assert set(b) == {1}
    assert [r.image_id for r in mixture().split("train")] == [r.image_id for r in train]


def test_a_record_is_its_sources_but_for_the_id() -> None:
    source, record = datasets.build(SHAPES).split("val")[0], mixture().split("val")[0]
    assert (record.image_id, record.texts) == (f"a/{source.image_id}", source.texts)
    assert np.array_equal(np.asarray(record.image), np.asarray(source.image))


def test_other_splits_are_all_records_once() -> None:
    val = mixture().split("val")
    assert len({record.image_id for record in val}) == len(val) == 6
    assert len(mixture(splits={"val": ["b"]}).split("val")) == 3


def test_it_is_a_sequence_with_counts() -> None:
    train = mixture().split("train")
    assert train.text_counts.tolist() == [len(record.texts) for record in train]
    assert train[-1].image_id == train[25].image_id
    assert [r.image_id for r in train[19:21]] == [train[19].image_id, train[20].image_id]
    with pytest.raises(IndexError):
        train[26]
    assert [r.image_id for r in pickle.loads(pickle.dumps(train))] == [r.image_id for r in train]


@pytest.mark.parametrize("captions", ["random", "all", "first"])
def test_a_repeated_image_is_one_image_to_sampler_and_loss(captions: Any) -> None:
    train = mixture().split("train")
    items = CaptionSamples(train, tokenizer=ByteTokenizer(), transform=None, captions=captions)
    ids = np.array([train[int(place)].image_id for place in items._record_index])
    same = ids[:, None] == ids
    assert np.array_equal(items.image_of[:, None] == items.image_of, same)
    shown = [items[i].image_id for i in range(len(items))]
    assert shown == items.image_of.tolist()
    assert [train[place].image_id for place in shown] == ids.tolist()  # validation looks records up by it


def test_a_mixture_of_mixtures_knows_what_is_the_same() -> None:
    inner = {"name": "mixture", "sources": {"a": {**SHAPES, "weight": 3}, "b": LARGER}, "size": 5}
    train = Mixture(sources={"m": inner, "s": LARGER}, size=40).split("train")
    ids = np.array([record.image_id for record in train])
    assert np.array_equal(train.image_indices[:, None] == train.image_indices, ids[:, None] == ids)


def test_shares_are_all_that_there_is_and_nearly_exact() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        weights, total = rng.uniform(0.01, 5, rng.integers(1, 8)), int(rng.integers(0, 500))
        counts = shares(weights, total)
        assert counts.sum() == total
        assert (abs(counts - total * weights / weights.sum()) < 1).all()


def test_a_source_may_have_no_share_at_all() -> None:
    train = mixture(size=1).split("train")
    assert [record.image_id[0] for record in train] == ["a"]
    assert len(train.text_counts) == 1


def test_it_keeps_the_contract() -> None:
    assert_contract(lambda: mixture())


# what is wrong


def test_a_source_without_the_split_is_named(tmp_path: Path) -> None:
    data = Mixture(sources={"t": csv_table(tmp_path)})
    with pytest.raises(DataError, match=r"Source 't' of the mixture: .*To make a split of some sources only.*none: \["):
        data.split("none")


def test_targets_of_some_sources_only(tmp_path: Path) -> None:
    data = Mixture(sources={"s": SHAPES, "t": csv_table(tmp_path)})
    with pytest.raises(DataError, match="In split 'train' of the mixture the source 't' has targets and 's' has none"):
        data.split("train")


@pytest.mark.parametrize("weight", [0, -1, "2", True, float("inf"), None])
def test_weights_are_numbers_above_zero(weight: Any) -> None:
    with pytest.raises(ValueError, match="weight of the source 'a' must be a number above 0"):
        Mixture(sources={"a": {**SHAPES, "weight": weight}})


def test_other_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="a mixture needs sources"):
        Mixture(sources={})
    with pytest.raises(ValueError, match="size must be at least 1"):
        mixture(size=0)
    for names in ([], ["c"]):
        with pytest.raises(ValueError, match=r"splits: val is made of .*, which is not a source\. The sources: a, b"):
            mixture(splits={"val": names})
    with pytest.raises(ConfigError, match=r"has no option 'train_sise'\. Did you mean 'train_size'"):
        Mixture(sources={"a": {"name": "shapes", "train_sise": 3}})


def test_nothing_but_a_dataset_is_built() -> None:
    with pytest.raises(DataError, match="names 'subprocess:Popen', which is no Dataset; it was not built"):
        Mixture(sources={"a": {"name": "subprocess:Popen", "args": "true"}})


def test_sentences_are_read_without_images() -> None:
    train = mixture().split("train")
    for place, record in enumerate(train):
        text_only = train.text_only(place)
        assert (text_only.image_id, text_only.texts, text_only.image) == (record.image_id, record.texts, None)
