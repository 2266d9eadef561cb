"""Zero-shot classification: classes from metadata, prompt ensembles, errors for missing classes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from velm.data.base import Record
from velm.data.formats.image_folder import ImageFolder
from velm.errors import DataError
from velm.evaluation.zero_shot import class_embeds, classes_of, require_classes, zero_shot_metrics
from velm.pipeline import load


@pytest.fixture
def folder(tmp_path):
    """Two classes in 'test'; a third has an image in 'train' only."""
    for place in ("test/red", "test/small_blue", "train/red", "train/small_blue", "train/large_green"):
        for number in range(3):
            path = tmp_path / "data" / place / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), place.split("_")[-1].split("/")[-1]).save(path)
    return ImageFolder(path=str(tmp_path / "data"))


def test_classes_are_those_of_all_splits(folder):
    names, labels = classes_of(folder.split("test"))
    assert names == ["large green", "red", "small blue"]
    assert labels.tolist() == [1, 1, 1, 2, 2, 2]


def test_classes_of_plain_records():
    records = [Record(str(i), None, ("x",), metadata={"class": name}) for i, name in enumerate(["b", "a", "b"])]
    names, labels = classes_of(records)
    assert (names, labels.tolist()) == (["b", "a"], [0, 1, 0])
    assert classes_of([Record("0", None, ("x",))]) is None
    assert classes_of([]) is None
    with pytest.raises(DataError, match="Record 'y' has no class, others have"):
        classes_of([*records, Record("y", None, ("x",))])
    with pytest.raises(DataError, match=r"The records have no classes.*image_folder"):
        require_classes([Record("0", None, ("x",))])


def test_metrics_agree_with_the_pipeline(folder, write_checkpoint):
    pipeline, records = load(write_checkpoint()), folder.split("test")
    images = pipeline.embed_images([record.image for record in records])
    found = zero_shot_metrics(pipeline, records, images, templates=["a {}"], ks=(1, 2, 5))
    assert set(found) == {"zero_shot/top1", "zero_shot/top2", "zero_shot/mean_per_class_recall"}  # top5 says nothing
    names, labels = classes_of(records)
    scores = pipeline.score([record.image for record in records], [f"a {name}" for name in names])
    assert found["zero_shot/top1"] == (scores.argmax(1) == labels).double().mean()


def test_perfect_embeddings_by_hand(folder, write_checkpoint):
    pipeline, records = load(write_checkpoint()), folder.split("test")
    names, labels = classes_of(records)
    assert zero_shot_metrics(pipeline, records, class_embeds(pipeline, names)[labels])["zero_shot/top1"] == 1


def test_an_ensemble_is_the_mean_of_its_prompts(write_checkpoint):
    pipeline = load(write_checkpoint())
    one, other, both = (class_embeds(pipeline, ["red", "star"], t) for t in (["a {}"], ["{}"], ["a {}", "{}"]))
    assert torch.allclose(both, torch.nn.functional.normalize(one + other, dim=1), atol=1e-6)


def test_unknown_names_are_warned_of(write_checkpoint):
    with pytest.warns(UserWarning, match="does not know all words of 1 of 2 classes: tench"):
        class_embeds(load(write_checkpoint()), ["red", "tench"], ["{}"])


def test_recall_is_the_mean_over_classes_and_the_first_of_equal_names_wins(folder, write_checkpoint):
    pipeline, records = load(write_checkpoint()), folder.split("test")
    _, labels = classes_of(records)
    images = class_embeds(pipeline, ["red", "red", "blue"], ["a {}"])[labels]  # labels 1 1 1 2 2 2
    images[0] = -images[0]
    for words in (["green", "red", "blue"], {"large_green": "green", "red": "red", "small blue": "blue"}):
        found = zero_shot_metrics(pipeline, records, images, templates=["a {}"], class_names=words)
        assert found["zero_shot/top1"] == pytest.approx(5 / 6)
    recall = (2 / 3 + 1) / 2  # of classes with images
    assert found["zero_shot/mean_per_class_recall"] == pytest.approx(recall)
    images = images[[3, 3, 3, 1, 1, 1]]
    same = zero_shot_metrics(pipeline, records, images, templates=["a {}"], class_names=["red", "blue", "red"])
    assert same["zero_shot/mean_per_class_recall"] == 0.5  # an argmax takes the first of the two named red
    same = zero_shot_metrics(pipeline, records, images, templates=["a {}"], class_names=["star", "blue", "red"])
    assert same["zero_shot/mean_per_class_recall"] == 1


def test_two_folders_may_have_one_name(tmp_path):
    for name in ("n1", "n2"):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / "test" / name / "0.png")
    (tmp_path / "labels.csv").write_text("folder,label\nn1,missile\nn2,missile\n")
    records = ImageFolder(path=str(tmp_path / "data"), labels=str(tmp_path / "labels.csv")).split("test")
    names, labels = classes_of(records)
    assert (names, labels.tolist(), records.folders) == (["missile", "missile"], [0, 1], ["n1", "n2"])


@pytest.mark.parametrize(("templates", "got"), [(["a photo"], "'a photo'"), (["{} {}"], "'{} {}'"), ([], "none")])
def test_bad_templates_are_refused(write_checkpoint, templates, got):
    with pytest.raises(DataError, match=f"templates are prompts with one {{}} for the class.*got {got}"):
        class_embeds(load(write_checkpoint()), ["red"], templates)
