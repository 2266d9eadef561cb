"""A dataset, its tokenizer and its loaders by name: the same batches however they are read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from velm.data.synthetic import shapes as drawings
from velm.errors import ConfigError, DataError, MissingSplitError, PluginError, UnknownNameError
from velm.outputs import Batch
from velm.training.config import Augmentation
from velm.training.data import VisionLanguageData

SHAPES = {
    "name": "shapes", "train_size": 10, "val_size": 5, "test_size": 4, "heldout_size": 2, "objects": 1, "image_size": 32
}  # fmt: skip
ROWS = [
    ("train", "a.png", "a dog runs", "ein Hund"),
    ("train", "a.png", "a brown dog", "brauner Hund"),
    ("train", "b.png", "a cat", "eine Katze"),
    ("val", "c.png", "an unseen zebra", "ein Zebra"),
]


def shapes(**changes: Any) -> VisionLanguageData:
    return VisionLanguageData(**{"dataset": SHAPES, "image_size": 16, "batch_size": 4, **changes})


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., VisionLanguageData]:
    """Three images and their sentences in a csv."""
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (20, 12), (80 * i, 0, 0)).save(tmp_path / name)

    def make(target: bool = False, splits: tuple[str, ...] = ("train", "val"), **changes: Any) -> VisionLanguageData:
        lines = [",".join((split, image, image, text, to)) for split, image, text, to in ROWS if split in splits]
        path = tmp_path / "captions.csv"
        path.write_text("\n".join(["split,image_id,image_path,text,german", *lines, ""]))
        dataset = {"name": "csv", "path": str(path), **({"target_column": "german"} if target else {})}
        return VisionLanguageData(**{"dataset": dataset, "image_size": 8, "batch_size": 2, **changes})

    return make


def fields(batches: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in vars(batch).items() if isinstance(v, torch.Tensor)} for batch in batches]


def assert_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


# --- vocabulary


def test_the_vocabulary_is_that_of_the_training_split(table: Callable[..., VisionLanguageData]) -> None:
    data = table()
    assert data.vocab_size == 4 + len({"a", "dog", "runs", "brown", "cat"})
    assert data.pad_id == data.tokenizer.pad_id
    assert data.tokenizer_name == "word"
    assert data.tokenizer.encode("unseen")[1] == data.tokenizer.unk_id
    assert table(tokenizer={"name": "byte"}).vocab_size == 4 + 256


def test_targets_are_in_the_vocabulary(table: Callable[..., VisionLanguageData]) -> None:
    data = table(target=True)
    assert data.has_target
    assert not table().has_target
    assert data.vocab_size == 4 + len({"a", "dog", "runs", "brown", "cat", "ein", "hund", "brauner", "eine", "katze"})


# --- batches


def test_batches_are_bytes_and_whole_sentences() -> None:
    data = shapes()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4]  # the rest of two sits the epoch out
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (4, 3, 16, 16)
        assert (batch.tokens[:, 0] == data.tokenizer.bos_id).all()
        last = batch.mask.sum(1) - 1
        assert (batch.tokens[torch.arange(4), last] == data.tokenizer.eos_id).all()
        assert torch.equal(batch.mask, batch.tokens != data.pad_id)
        assert len(batch.image_ids.unique()) == 4
        assert batch.target_tokens is None


def test_a_target_comes_with_the_batch(table: Callable[..., VisionLanguageData]) -> None:
    data = table(target=True, captions="first")
    [batch] = data.train_dataloader()
    written = {data.tokenizer.decode(row) for row in batch.target_tokens.tolist()}
    assert written == {"ein hund", "eine katze"}
    assert torch.equal(batch.target_mask, batch.target_tokens != data.pad_id)


def test_the_number_of_workers_changes_nothing() -> None:
    augment = Augmentation(crop_scale=(0.5, 1.0), flip=True, color_jitter=0.4)
    alone, together = (shapes(num_workers=n, augment=augment, seed=3) for n in (0, 2))
    assert_same(fields(alone.train_dataloader()), fields(together.train_dataloader()))


def test_the_seed_is_the_runs_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def order(**changes: Any) -> list[int]:
        return [i for batch in shapes(**changes).train_dataloader() for i in batch.image_ids.tolist()]

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert order() == order(seed=0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert order() == order(seed=7) != order(seed=0)


def test_all_captions_are_all_samples(table: Callable[..., VisionLanguageData]) -> None:
    assert sum(len(batch) for batch in table(captions="all", batch_size=1).train_dataloader()) == 3
    assert sum(len(batch) for batch in table(captions="random", batch_size=1).train_dataloader()) == 2


def test_outside_training_each_image_comes_once_and_in_order() -> None:
    data = shapes(eval_batch_size=2)
    assert [batch.image_ids.tolist() for batch in data.val_dataloader()] == [[0, 1], [2, 3], [4]]
    assert [batch.image_ids.tolist() for batch in data.test_dataloader()] == [[0, 1], [2, 3]]
    assert_same(fields(data.predict_dataloader()), fields(data.test_dataloader()))
    assert [len(batch) for batch in shapes().val_dataloader()] == [4, 1]


def test_ranks_share_a_split_without_a_image_twice() -> None:
    seen = []
    for rank in (0, 1):
        data = shapes()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, state=SimpleNamespace(fn="validate"))
        seen.append([i for batch in data.val_dataloader() for i in batch.image_ids.tolist()])
    assert seen == [[0, 2, 4], [1, 3]]


# --- length


def test_long_sentences_are_cut_with_one_warning(table: Callable[..., VisionLanguageData]) -> None:
    data = table(max_length=4, captions="first", splits=("train",))
    with pytest.warns(UserWarning, match=r"2 of 3 captions \(66.7%\) are longer than max_length = 4") as said:
        data.setup("fit")
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("validate")
        [batch] = data.train_dataloader()
    assert batch.tokens.shape[1] == 4
    assert set(batch.tokens[:, -1].tolist()) == {data.tokenizer.eos_id}
    assert sorted(map(data.tokenizer.decode, batch.tokens.tolist())) == ["a cat", "a dog"]


def test_nothing_is_said_where_nothing_is_cut(table: Callable[..., VisionLanguageData]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table(max_length=5, splits=("train",)).setup("fit")


def test_unknown_validation_words_are_announced_before_training(table: Callable[..., VisionLanguageData]) -> None:
    with pytest.warns(UserWarning, match="100% of the tokens of the validation split are unknown.*unseen zebra"):
        table(max_length=5).setup("fit")


# --- what a checkpoint keeps


def test_the_config_is_plain() -> None:
    data = shapes(augment=Augmentation(crop_scale=(0.5, 1.0)), resize="squash", max_length=12)
    config = data.config()
    stored = json.loads(json.dumps(config))
    assert stored["dataset"] == SHAPES
    assert stored["tokenizer"] == "word"
    assert stored["augment"] == {"crop_scale": [0.5, 1.0], "flip": False, "color_jitter": 0.0}
    assert (stored["image_size"], stored["resize"], stored["max_length"]) == (16, "squash", 12)
    assert data.eval_transform.config() == {"image_size": 16, "resize": "squash"}
    again = VisionLanguageData(**{**config, "augment": Augmentation(**config["augment"])})
    assert_same(fields(again.train_dataloader()), fields(data.train_dataloader()))


# --- bad input


def test_a_missing_split_is_named() -> None:
    data = shapes(dataset={**SHAPES, "val_size": 0})
    with pytest.raises(DataError, match=r"The split 'val' of shapes is empty. Splits there are: train \(10\), test"):
        data.val_dataloader()
    with pytest.raises(DataError, match="'dev'"):
        data.records("dev")


def test_data_without_a_validation_split_can_be_trained_on(table: Callable[..., VisionLanguageData]) -> None:
    data = table(splits=("train",))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, state=SimpleNamespace(fn="fit"))
    assert data.val_dataloader() == []
    data.trainer.state.fn = "validate"
    with pytest.raises(MissingSplitError, match="val"):
        data.val_dataloader()


def test_a_broken_validation_split_is_not_taken_for_none(table: Callable[..., VisionLanguageData]) -> None:
    data = table()
    path = Path(data.dataset.path)
    path.write_text(path.read_text().replace("an unseen zebra", ""))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, state=SimpleNamespace(fn="fit"))
    with pytest.raises(DataError, match="column 'text' is empty"):
        data.val_dataloader()


@pytest.mark.parametrize(
    ("option", "least"), [("image_size", 1), ("batch_size", 1), ("max_length", 3)]
)  # fmt: skip
def test_impossible_numbers_are_refused(option: str, least: int) -> None:
    with pytest.raises(ConfigError) as error:
        shapes(**{option: least - 1})
    assert str(error.value) == f"data.{option} must be at least {least}; got {least - 1}."


def test_unknown_names_and_options_are_refused_at_once() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown dataset 'shape'. Did you mean 'shapes'"):
        shapes(dataset="shape")
    with pytest.raises(ConfigError, match=r"has no option 'train_sizes'. Did you mean 'train_size'"):
        shapes(dataset={"name": "shapes", "train_sizes": 3})
    with pytest.raises(ConfigError, match="The dataset 'shapes' cannot be built: objects 5 is not between 1 and 3"):
        shapes(dataset={"name": "shapes", "objects": 5})
    with pytest.raises(UnknownNameError, match=r"Unknown tokenizer 'words'. Did you mean 'word'"):
        _ = shapes(tokenizer="words").vocab_size
    with pytest.raises(PluginError, match="The plugin 'no_such_module'"):
        shapes(plugins=["no_such_module"])


@pytest.mark.parametrize(("captions", "count"), [("all", 2), ("random", 0)])
def test_captions_per_image_is_for_random_captions(captions: str, count: int) -> None:
    with pytest.raises(ConfigError, match=f"captions_per_image is {count} with captions: {captions}; it is at least 1"):
        shapes(captions=captions, captions_per_image=count)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_may_hold_several_captions_a_image(workers: int) -> None:
    data = shapes(captions_per_image=3, num_workers=workers)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [12, 12]
    for batch in batches:
        assert batch.images.shape[0] == 4
        assert batch.image_rows.tolist() == [row for row in range(4) for _ in range(3)]
        assert batch.image_ids.tolist() == [i for i in batch.image_ids[::3].tolist() for _ in range(3)]
    assert data.config()["captions_per_image"] == 3
    data.setup("validate")
    assert all(batch.image_rows is None for batch in data.val_dataloader())  # validation has a caption an image


# --- batches by length


def test_a_budget_of_tokens_holds_in_every_batch() -> None:
    dataset = {"name": "shapes", "train_size": 60, "val_size": 4, "objects": 2}
    data = VisionLanguageData(dataset=dataset, image_size=16, max_tokens=100, captions_per_image=2)
    loader = data.train_dataloader()
    found = list(loader)
    assert len(found) == len(loader)
    assert all(batch.tokens.numel() <= 100 for batch in found)
    assert sum(len(batch) for batch in found) == 120
    assert data.config()["max_tokens"] == 100
    with pytest.raises(DataError, match="max_tokens is 5, but a single sample has"):
        VisionLanguageData(dataset=dataset, max_tokens=5).train_dataloader()
    with pytest.raises(DataError, match="need each image once per epoch"):
        VisionLanguageData(dataset=dataset, bucket_by_length=True, captions="all").train_dataloader()


def test_a_run_that_begins_draws_no_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabulary, lengths and counts of texts are of sentences alone."""
    drawn, draw = [], drawings.draw
    monkeypatch.setattr(drawings, "draw", lambda *given: drawn.append(given) or draw(*given))
    data = shapes()
    assert data.vocab_size > 4
    data.setup("fit")
    loader = data.train_dataloader()
    assert not drawn
    next(iter(loader))
    assert len(drawn) == 4
