"""What is packed reads as what it came from; a pack can be interrupted anywhere and gives the same bytes."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tiny import csv_table, image_bytes, told, write_tar

from velm.data.base import EncodedImage, Record
from velm.data.formats.webdataset import WebDataset
from velm.data.images.transforms import read_image
from velm.data.shards import packing
from velm.data.shards.packing import file_of, pack
from velm.errors import DataError
from velm.registry import datasets
from velm.testing import assert_contract

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "imagenette"
SPLITS = ("train", "val", "test")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_pack_then_read_is_the_source_record_by_record(tmp_path: Path) -> None:
    spec, out = csv_table(tmp_path), tmp_path / "pack"
    seen: list[tuple[int, int]] = []
    manifest = pack(spec, str(out), shard_size=4, progress=lambda *done: seen.append(done))
    assert seen == [(i + 1, 5) for i in range(5)]
    assert [(s["name"], s["samples"]) for s in manifest["shards"]] == [
        ("train-00000.tar", 4), ("train-00001.tar", 4), ("train-00002.tar", 1), ("val-00000.tar", 1),
        ("test-00000.tar", 1),
    ]  # fmt: skip
    source, packed = datasets.build(spec), datasets.build({"name": "webdataset", "path": str(out)})
    for split in SPLITS:
        assert [told(r) for r in packed.split(split)] == [told(r) for r in source.split(split)]
    assert packed.split("train").text_counts.tolist() == [2] * 9
    assert_contract(lambda: WebDataset(path=str(out)))
    assert json.loads((out / "manifest.json").read_text()) == manifest


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    """csv, webdataset, bytes in Parquet, Hugging Face: one and the same data."""
    spec = csv_table(tmp_path)
    pack(spec, str(tmp_path / "pack"))
    every = {split: list(datasets.build(spec).split(split)) for split in SPLITS}
    rows = [
        {"image": {"bytes": told(r)[1], "path": None}, "text": list(r.texts), "to": list(r.targets or ()),
         "split": split, "image_id": r.image_id}
        for split, records in every.items() for r in records
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    specs: list[dict[str, Any]] = [
        {"name": "webdataset", "path": str(tmp_path / "pack")},
        {"name": "parquet", "path": str(tmp_path / "a.parquet"), "image_bytes_column": "image", "target_column": "to"},
    ]
    try:
        import datasets as hf

        parts = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
        hf.DatasetDict({split: hf.Dataset.from_list(part) for split, part in parts.items()}).save_to_disk(
            str(tmp_path / "hf")
        )
        specs.append({"name": f"hf/{tmp_path / 'hf'}", "target_column": "to", "image_id_column": "image_id"})
    except ImportError:
        pass
    for other in specs:
        data = pickle.loads(pickle.dumps(datasets.build(other)))
        for split, records in every.items():
            assert [told(r) for r in data.split(split)] == [told(r) for r in records], other["name"]


def test_shards_of_a_pack_can_be_named_one_by_one(tmp_path: Path) -> None:
    pack(csv_table(tmp_path), str(tmp_path / "pack"), shard_size=4)
    keys = {"json_text_key": "texts", "json_target_key": "targets", "json_image_id_key": "image_id"}
    named = WebDataset(train=str(tmp_path / "pack" / "train-{00000..00002}.tar"), **keys).split("train")
    assert [told(r) for r in named] == [told(r) for r in WebDataset(path=str(tmp_path / "pack")).split("train")]


def test_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    spec = csv_table(tmp_path)
    pack(spec, str(tmp_path / "one"), shard_size=4)
    pack(spec, str(tmp_path / "two"), shard_size=4, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("stopped_after", [0, 1, 3, 4])
def test_an_interrupted_pack_goes_on_where_it_stopped(
    tmp_path: Path, stopped_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = csv_table(tmp_path), tmp_path / "pack"
    pack(spec, str(tmp_path / "whole"), shard_size=4)
    real, written = packing.write_shard, []

    def stopping(*task: Any) -> dict[str, Any]:
        if len(written) == stopped_after:
            Path(f"{task[4]}.1.part").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(task[4])
        return real(*task)

    monkeypatch.setattr(packing, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        pack(spec, str(out), shard_size=4)
    with pytest.raises(DataError, match=f"is not finished: {5 - stopped_after} of 5 shards are missing"):
        WebDataset(path=str(out))
    stopped_after, first = -1, list(written)
    pack(spec, str(out), shard_size=4)
    assert not set(first) & set(written[len(first) :])
    assert len(written) == 5
    assert files(out) == files(tmp_path / "whole")


def test_a_shard_that_is_not_as_it_was_written_is_written_again(tmp_path: Path) -> None:
    spec, out = csv_table(tmp_path), tmp_path / "pack"
    pack(spec, str(out), shard_size=4)
    before = files(out)
    damaged = bytearray(before["train-00000.tar"])
    damaged[600] ^= 1
    (out / "train-00000.tar").write_bytes(damaged)
    (out / "train-00001.tar").unlink()
    (out / "val-00000.tar").write_bytes(b"")
    kept = (out / "test-00000.tar").stat().st_mtime_ns
    pack(spec, str(out), shard_size=4)
    assert files(out) == before
    assert (out / "test-00000.tar").stat().st_mtime_ns == kept


def test_files_are_packed_as_they_are_and_pixels_as_png(tmp_path: Path) -> None:
    pack({"name": "shapes", "train_size": 3, "val_size": 1, "test_size": 1}, str(tmp_path), splits=["train"])
    with tarfile.open(tmp_path / "train-00000.tar") as tar:
        names = tar.getnames()
    assert names == [f"{i:09d}.{kind}" for i in range(3) for kind in ("png", "json", "txt")]
    source = datasets.build({"name": "shapes", "train_size": 3, "val_size": 1, "test_size": 1}).split("train")
    for ours, theirs in zip(WebDataset(path=str(tmp_path)).split("train"), source, strict=True):
        assert ours.texts == theirs.texts
        assert np.array_equal(np.asarray(read_image(ours.image)), np.asarray(read_image(theirs.image)))
    for kind, ending in {
        "JPEG": "jpg",
        "PNG": "png",
        "WEBP": "webp",
        "GIF": "gif",
        "BMP": "bmp",
        "TIFF": "tif",
    }.items():
        content = image_bytes(0, kind)
        assert file_of(Record("a", EncodedImage("a.bin", lambda content=content: content), ("a",))) == (content, ending)
    assert file_of(Record("a", np.zeros((2, 2, 3), np.uint8), ("a",)))[1] == "png"
    assert file_of(Record("a", Image.new("RGB", (2, 2)), ("a",)))[1] == "png"


def test_a_repeated_image_is_packed_as_often_and_known_to_be_the_same(tmp_path: Path) -> None:
    spec = {"name": "mixture", "sources": {"a": csv_table(tmp_path)}, "size": 20}
    pack(spec, str(tmp_path / "pack"), splits=["train"])
    source, packed = (d.split("train") for d in (datasets.build(spec), WebDataset(path=str(tmp_path / "pack"))))
    assert [told(r) for r in packed] == [told(r) for r in source]
    assert packed.image_indices.tolist() == source.image_indices.tolist()


def test_shards_can_be_packed_again(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", {"x.jpg": image_bytes(0), "x.txt": "a dog"})
    pack({"name": "webdataset", "train": shard}, str(tmp_path / "pack"), splits=["train"])
    assert told(WebDataset(path=str(tmp_path / "pack")).split("train")[0]) == told(
        WebDataset(train=shard).split("train")[0]
    )


def test_plugins_are_loaded_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "my_toy_data.py").write_text(
        "import velm, numpy as np\n\n\n@velm.datasets.register('my_toy_data')\nclass Toy(velm.Dataset):\n"
        "    def split(self, name):\n"
        "        return [velm.Record(str(i), np.full((2, 2, 3), i, np.uint8), ('a',)) for i in range(3)]\n"
    )
    plugin = str(tmp_path / "my_toy_data.py")
    spec = {"name": "my_toy_data"}
    pack(spec, str(tmp_path / "pack"), splits=["train"], shard_size=1, workers=2, plugins=[plugin])
    assert len(WebDataset(path=str(tmp_path / "pack")).split("train")) == 3


# what is wrong


def test_another_folder_is_not_written_into(tmp_path: Path) -> None:
    spec, out = csv_table(tmp_path), tmp_path / "pack"
    with pytest.raises(DataError, match="is not empty and holds no pack"):
        pack(spec, str(tmp_path))
    pack(spec, str(out), shard_size=4)
    before = files(out)
    for other, options in (({**spec, "target_column": None}, {}), (spec, {"shard_size": 5})):
        with pytest.raises(DataError, match=r"holds a pack of another dataset or shard size: .*in shards of 4; req"):
            pack(other, str(out), **{"shard_size": 4, **options})
    with pytest.raises(DataError, match=r"other splits, or the data has changed since: 5 shards of 11 .*, 3 of 9 now"):
        pack(spec, str(out), shard_size=4, splits=["train"])
    assert files(out) == before


def test_records_that_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Record 'a' has no image"):
        file_of(Record("a", None, ("a",)))
    (tmp_path / "a.jpg").write_bytes(b"<html>not found")
    with pytest.raises(DataError, match=r"a\.jpg' is no image: it begins with b'<html>no'"):
        file_of(Record("a", str(tmp_path / "a.jpg"), ("a",)))
    with pytest.raises(DataError, match="There is no image"):
        file_of(Record("a", str(tmp_path / "none.jpg"), ("a",)))
    for options in ({"shard_size": 0}, {"workers": 0}):
        with pytest.raises(DataError, match="must be at least 1"):
            pack(csv_table(tmp_path), str(tmp_path / "pack"), **options)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/imagenette")
def test_imagenette(tmp_path: Path) -> None:
    spec = {"name": "image_folder", "path": str(REAL), "labels": str(REAL / "classes.csv")}
    pack(spec, str(tmp_path / "pack"), splits=["val"], shard_size=100)
    source = datasets.build(spec).split("val")
    packed = WebDataset(path=str(tmp_path / "pack")).split("val")
    assert [told(r) for r in packed] == [told(r) for r in source]
    shutil.rmtree(tmp_path / "pack")


def test_a_record_whose_image_is_none_is_left_out_and_listed(tmp_path: Path) -> None:
    lines = ["image_path,text,split"]
    for number in range(5):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,image {number},train")
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "3.png").unlink()
    (tmp_path / "data.csv").write_text("\n".join(lines))
    spec = {"name": "csv", "path": str(tmp_path / "data.csv"), "image_id_column": None, "check_files": False}
    manifest = pack(spec, str(tmp_path / "out"), splits=["train"], shard_size=3)
    assert [shard["samples"] for shard in manifest["shards"]] == [2, 1]
    assert [[Path(each["path"]).name for each in shard["left_out"]] for shard in manifest["shards"]] == [
        ["2.png"], ["3.png"],
    ]  # fmt: skip
    assert pack(spec, str(tmp_path / "out"), splits=["train"], shard_size=3) == manifest  # resumed: nothing to do
    packed = WebDataset(path=str(tmp_path / "out")).split("train")
    assert [record.texts for record in packed] == [("image 0",), ("image 1",), ("image 4",)]
