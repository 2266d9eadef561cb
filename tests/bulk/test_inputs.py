"""Inputs in parts: each image once, the same identity for the same input, bad shards named."""

from __future__ import annotations

import shutil

import pytest
import yaml
from tiny import csv_table, image_bytes, write_tar

from velm.bulk.columns import Captions, Embeddings
from velm.bulk.inputs import open_input
from velm.data.base import EncodedImage
from velm.data.images.decode import read_image
from velm.data.shards.packing import pack
from velm.errors import DataError, RunFailedError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.jpg", "more/c.jpg", "d.jpg", ".hidden.jpg")):
        (tmp_path / "images" / name).write_bytes(image_bytes(number))
    return tmp_path / "images"


def opened(*sources, split=None, part_size=2):
    return open_input([str(source) for source in sources], split=split, part_size=part_size)


def ids(input_):
    return [list(input_.part(number).ids) for number in range(input_.parts)]


def test_a_folder_in_parts_by_position(folder, tmp_path):
    input_ = opened(folder)
    assert ids(input_) == [["a.jpg", "b.jpg"], ["d.jpg", "more/c.jpg"]]
    assert input_.part(1).image(1) == str(folder / "more/c.jpg")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert opened(moved).identity == input_.identity
    (moved / "new.jpg").write_bytes(image_bytes(9))
    assert opened(moved).identity != input_.identity


def test_several_folders_and_images_have_their_paths_as_ids(folder):
    assert ids(opened(folder / "a.jpg", folder / "more", part_size=9)) == [
        [str(folder / "a.jpg"), str(folder / "more/c.jpg")]
    ]


def test_a_shard_is_a_part_and_needs_no_captions(tmp_path):
    for number in range(2):
        members = {f"IMG.{number}{i}.jpg": image_bytes(i) for i in range(3)}
        write_tar(tmp_path / f"s-{number}.tar", {**members, "IMG.json": "{}", "._IMG.jpg": b"", "notes.txt": "x"})
    input_ = opened(tmp_path)
    assert ids(input_) == [[f"s-{n}.tar/IMG.{n}{i}.jpg" for i in range(3)] for n in range(2)]
    image = input_.part(1).image(2)
    assert isinstance(image, EncodedImage)
    assert image.load() == image_bytes(2)
    assert ids(opened(tmp_path / "s-{0..1}.tar")) == ids(input_)
    assert opened(tmp_path / "s-{0..1}.tar").identity == input_.identity
    assert ids(opened(tmp_path / "s-1.tar")) == ids(input_)[1:]


def test_a_shard_without_images_is_an_empty_part(tmp_path, pipeline):
    write_tar(tmp_path / "s.tar", {"a.txt": "a red circle"})
    part = opened(tmp_path / "s.tar").part(0)
    assert len(part) == 0
    for task in (Captions(pipeline), Embeddings(pipeline)):
        columns, errors = task.columns(range(0), 2, part.image)
        assert errors == []
        assert {len(column) for column in columns.values()} == {0}


def test_a_broken_shard_keeps_its_images_and_has_one_more_row(tmp_path):
    path = tmp_path / "s-0.tar"
    write_tar(path, {f"{i}.jpg": image_bytes(i) for i in range(3)})
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"2.jpg") + 700])
    (tmp_path / "s-1.tar").write_bytes(b"no tar" * 200)
    first, second = (opened(tmp_path).part(number) for number in range(2))
    assert first.ids == ["s-0.tar/0.jpg", "s-0.tar/1.jpg", "s-0.tar"]
    assert read_image(first.image(1)).size == (8, 8)
    with pytest.raises(DataError, match=r"s-0.tar': the shard is cut off: it ends after 2 complete members"):
        first.image(2)
    assert second.ids == ["s-1.tar"]
    with pytest.raises(DataError, match=r"s-1.tar' is not a tar file"):
        second.image(0)


def test_a_dataset_and_its_pack(tmp_path):
    config = csv_table(tmp_path)
    input_ = opened(yaml.safe_dump(config, default_flow_style=True), split="train", part_size=4)
    assert ids(input_) == [[f"id{i}" for i in range(n, min(n + 4, 9))] for n in (0, 4, 8)]
    assert input_.part(2).image(0) == str(tmp_path / "8.jpg")
    pack(config, str(tmp_path / "pack"), shard_size=5)
    assert sorted(map(len, ids(opened(tmp_path / "pack")))) == [1, 1, 4, 5]
    assert list(map(len, ids(opened(tmp_path / "pack", split="train")))) == [5, 4]
    with pytest.raises(DataError, match=r"has no split 'dev'. It has: train, val, test"):
        opened(tmp_path / "pack", split="dev")


def test_what_cannot_be_read_is_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "s.tar", {"a.jpg": image_bytes(0)})
    for sources, split, message in (
        ([], None, "Nothing to read"),
        ([tmp_path / "empty"], None, "empty' has no images at all"),
        ([tmp_path / "nowhere"], None, "There is no image or folder '.*nowhere'"),
        ([tmp_path / "nowhere.tar"], None, "There is no shard '.*nowhere.tar'"),
        ([tmp_path / "s.tar", folder], None, "Shards and images do not mix"),
        ([folder], "test", "--split test is of a dataset or a pack"),
        (["{name: shapes}"], None, "The dataset 'shapes' has splits: say which"),
        (["{name: shapes}", folder], "test", "A dataset stands alone; got 2 sources"),
        (["{name: shapes, test_size: 3}"], "dev", "The split 'dev' of shapes does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            opened(*sources, split=split)


def test_an_input_that_vanishes_is_not_a_bad_image(folder, tmp_path):
    write_tar(tmp_path / "shards" / "s.tar", {"a.jpg": image_bytes(0)})
    config = csv_table(folder)
    inputs = [
        opened(folder),
        opened(tmp_path / "shards"),
        opened(yaml.safe_dump(config, default_flow_style=True), split="train"),
    ]
    for input_ in inputs:
        input_.check_presence()
    folder.rename(tmp_path / "away")
    (tmp_path / "shards").rename(tmp_path / "gone")
    for input_ in inputs:
        with pytest.raises(RunFailedError, match="has vanished during the run"):
            input_.check_presence()


def test_a_record_without_an_image_is_a_bad_row():
    input_ = opened("{name: shapes, test_size: 3}", split="test")
    assert input_.part(1).image(0).shape == (64, 64, 3)
    input_.records = [type("Record", (), {"image": None, "image_id": "x"})()] * 3
    with pytest.raises(DataError, match="Record 'x' has no image"):
        input_.part(0).image(0)
