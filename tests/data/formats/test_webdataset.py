from __future__ import annotations

import multiprocessing
import os
import pickle
import uuid
import warnings
from pathlib import Path

import pytest
from tiny import image_bytes, told, write_tar

from velm.data.base import EncodedImage
from velm.data.formats.webdataset import WebDataset
from velm.data.images.prefetch import read_batches
from velm.data.images.transforms import EvalTransform, read_image
from velm.errors import DataError

JPEG = [image_bytes(seed) for seed in range(6)]


def shards(folder: Path, **more: bytes | str | dict) -> str:
    """Two shards as img2dataset writes them; what they are called, with a range."""
    write_tar(
        folder / "0000.tar",
        {
            "000000000.jpg": JPEG[0], "000000000.txt": "a dog\n", "000000000.json": {"caption": "a dog", "key": "k0"},
            "000000001.PNG": image_bytes(1, "PNG"),
            "000000001.txt": "two\n\n dogs ", "000000001.json": {"caption": ["x"]},
        },
    )  # fmt: skip
    write_tar(
        folder / "0001.tar",
        {"./sub/000.webp": image_bytes(2, "WEBP"), "./sub/000.txt": "Ωμέγα", "._000.jpg": b"", "README": b"", **more},
    )
    return str(folder / "{0000..0001}.tar")


def tolerant(**options) -> WebDataset:
    data = WebDataset(**options)
    data.max_bad = 1.0
    return data


def test_samples_are_records_in_the_order_of_the_shards(tmp_path: Path) -> None:
    train = WebDataset(train=shards(tmp_path)).split("train")
    assert [(r.image_id, r.texts) for r in train] == [
        ("0000.tar/000000000", ("a dog",)),
        ("0000.tar/000000001", ("two\n\n dogs",)),
        ("0001.tar/sub/000", ("Ωμέγα",)),
    ]
    assert train[0].image == EncodedImage("0000.tar/000000000.jpg", train[0].image.load)
    assert train[0].image.load() == JPEG[0]
    assert read_image(train[2].image).size == (8, 8)
    assert train[-1] == train[2]
    assert train[:2] == [train[0], train[1]]
    assert train.text_counts.tolist() == [1, 1, 1]


def test_sentences_a_line_and_of_the_json(tmp_path: Path) -> None:
    path = shards(tmp_path)
    assert WebDataset(train=path, txt="lines").split("train")[1].texts == ("two", "dogs")
    both = WebDataset(train=path, json_text_key="caption", json_image_id_key="key").split("train")
    assert [r.texts for r in both] == [("a dog",), ("x", "two\n\n dogs"), ("Ωμέγα",)]
    assert [r.image_id for r in both] == ["k0", "0000.tar/000000001", "0001.tar/sub/000"]
    told = tolerant(train=path, json_text_key="caption", txt="none")
    with pytest.warns(UserWarning, match="1 of 3 records"):
        assert len(told.split("train")) == 2


def test_targets_of_the_json(tmp_path: Path) -> None:
    row = {"en": ["a dog", "dogs"], "de": ["ein Hund", "Hunde"]}
    path = write_tar(tmp_path / "a.tar", {"0.jpg": JPEG[0], "0.json": row, "0.txt": "left alone"})
    (record,) = WebDataset(train=path, json_text_key="en", json_target_key="de").split("train")
    assert (record.texts, record.targets) == (("a dog", "dogs"), ("ein Hund", "Hunde"))


@pytest.mark.parametrize("folder", ["", "a.b/"])
def test_names_may_have_dots(tmp_path: Path, folder: str) -> None:
    """A sample is named by the part before the first dot, else, without an image there, before the last."""
    members = {
        f"{folder}IMG.{n}{ending}": JPEG[n] if ending == ".JPG" else f"text {n}"
        for n in range(3)
        for ending in (".txt", ".JPG")
    }
    members |= {f"{folder}plain.jpg": JPEG[3], f"{folder}plain.mask.png": JPEG[4], f"{folder}plain.txt": "plain"}
    members |= {f"{folder}1.5.jpg": JPEG[5], f"{folder}1.5.json": {"caption": "half"}}
    train = WebDataset(train=write_tar(tmp_path / "0.tar", members), json_text_key="caption").split("train")
    assert {record.image_id.removeprefix(f"0.tar/{folder}"): record.texts[0] for record in train} == {
        "IMG.0": "text 0", "IMG.1": "text 1", "IMG.2": "text 2", "plain": "plain", "1.5": "half",
    }  # fmt: skip
    assert [record.image.load() for record in train] == [*JPEG[:4], JPEG[5]]


def test_each_split_has_its_shards(tmp_path: Path) -> None:
    a, b = (write_tar(tmp_path / split / "0.tar", {"0.jpg": JPEG[0], "0.txt": split}) for split in ("a", "b"))
    data = WebDataset(train=[a], val=b)
    assert [data.split(s)[0].image_id for s in ("train", "val")] == ["a/0.tar/0", "b/0.tar/0"]
    with pytest.raises(DataError, match=r"no shards for the split 'test'\. .*'train' \(1 shards\), 'val' \(1 shards\)"):
        data.split("test")
    with pytest.raises(DataError, match=r"0\.tar' is in 'train' and in 'test'\. Name each shard once"):
        WebDataset(train=[a, b], test=b)
    with pytest.raises(DataError, match=r"0\.tar' is twice in 'train'"):
        WebDataset(train=[a, a])


def test_samples_of_one_id_show_one_image_and_null_is_no_id(tmp_path: Path) -> None:
    ids = [7, None, 7, 0, None]
    members = {f"{i}.{e}": c for i, n in enumerate(ids) for e, c in
               {"jpg": JPEG[0], "txt": str(i), "json": {"id": n}}.items()}  # fmt: skip
    train = WebDataset(train=write_tar(tmp_path / "0.tar", members), json_image_id_key="id").split("train")
    assert [record.image_id for record in train] == ["7", "0.tar/1", "7", "0", "0.tar/4"]
    assert train.image_indices.tolist() == [0, 1, 0, 2, 3]


def test_the_image_is_read_alike_in_any_process(tmp_path: Path) -> None:
    train = WebDataset(train=shards(tmp_path)).split("train")
    wanted = [told(record) for record in train]
    assert list(pickle.loads(pickle.dumps(train))) == list(train)
    transform = EvalTransform(image_size=8)
    assert sum(len(batch) for batch in read_batches([record.image for record in train], transform, 2)) == 3
    if "fork" in multiprocessing.get_all_start_methods():
        with warnings.catch_warnings():  # of threads in this process, none of which the worker needs
            warnings.simplefilter("ignore")
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(told, list(train)) == wanted


def test_a_remote_shard_is_like_a_local_one(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="pip install 'velm[remote]'")
    local = write_tar(tmp_path / "0.tar", {"0.jpg": JPEG[0], "0.txt": "a dog"})
    url = f"memory://{uuid.uuid4().hex}/0.tar"
    with fsspec.open(url, "wb") as file:
        file.write(Path(local).read_bytes())
    (record,) = WebDataset(train=url, cache=str(tmp_path / "cache")).split("train")
    assert told(record) == told(WebDataset(train=local).split("train")[0])


# what is wrong with the shards, each with its own message


def test_a_shard_that_is_cut_off_keeps_what_is_whole(tmp_path: Path) -> None:
    path = Path(write_tar(tmp_path / "0.tar", [(f"{i}.{e}", c) for i in range(4) for e, c in
                                               (("jpg", JPEG[i]), ("txt", f"dog {i}"))]))  # fmt: skip
    whole = list(WebDataset(train=str(path)).split("train"))
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(JPEG[2]) + 10])
    with pytest.warns(UserWarning, match=r"0\.tar \(the shard is cut off: it ends after 4 complete members\)"):
        cut = tolerant(train=str(path)).split("train")
    assert list(cut) == whole[:2]


def test_samples_that_lack_something_are_left_out_with_one_warning(tmp_path: Path) -> None:
    lacking = {"1.jpg": JPEG[0], "2.txt": "a", "3.jpg": JPEG[0], "3.txt": " \n", "4.json": {}}
    path = write_tar(tmp_path / "0.tar", {"0.jpg": JPEG[0], "0.txt": "a dog", **lacking})
    with pytest.warns(UserWarning, match="cannot be used") as warned:
        train = tolerant(train=path).split("train")
    assert len(train) == len(warned) == 1
    message = "4 of 5 records of split 'train' cannot be used: 0.tar/1.jpg (it has no text), 0.tar/2 (it has no "
    assert str(warned[0].message) == message + "image), 0.tar/3.jpg (it has no text), ..."


def test_when_nothing_is_whole_the_options_are_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"0.jpg": JPEG[0], "0.json": {"text": "a"}})
    with pytest.raises(DataError, match=r"The members end in: \.jpg, \.json\. .* set json_text_key to a key"):
        WebDataset(train=path).split("train")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.json": "{"}, r"0\.tar/0\.json is not JSON"),
        ({"0.json": "[1]"}, r"0\.tar/0\.json is not a JSON object, but a list"),
        ({"0.json": {"text": [1]}}, r"0\.tar/0\.json: 'text' holds 1, which is no text"),
        ({"0.txt": b"\xff"}, r"0\.tar/0\.txt is not UTF-8"),
    ],
)
def test_a_member_that_is_not_what_it_should_be(tmp_path: Path, members: dict, message: str) -> None:
    path = write_tar(tmp_path / "0.tar", {"0.jpg": JPEG[0], **members})
    with pytest.raises(DataError, match=message):
        WebDataset(train=path, json_text_key="text").split("train")


def test_targets_that_do_not_fit(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"0.jpg": JPEG[0], "0.json": {"text": ["a", "b"], "to": ["c"]}})
    options = {"json_text_key": "text", "json_target_key": "to"}
    with pytest.raises(DataError, match=r"0\.tar/0\.json: 2 texts but 1 targets"):
        WebDataset(train=path, **options).split("train")
    members = {"0.jpg": JPEG[0], "0.json": {"text": "a", "to": "b"}, "1.jpg": JPEG[1], "1.json": {"text": "c"}}
    with pytest.raises(DataError, match=r"Sample 0\.tar/1 has no targets but others do"):
        WebDataset(train=write_tar(tmp_path / "0.tar", members), **options).split("train")
    with pytest.raises(ValueError, match="json_target_key needs json_text_key"):
        WebDataset(train=path, json_target_key="to")


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("0.jpg", JPEG[0]), ("0.JPG", JPEG[1])])
    with pytest.raises(DataError, match=r"0\.jpg: two members of its shard have the same name"):
        WebDataset(train=path).split("train")


def test_shards_that_are_none_and_names_that_lead_out(tmp_path: Path) -> None:
    """A lost shard counts for as many samples as the others have."""
    members = [(f"{i}.{e}", c) for i in range(3) for e, c in (("jpg", JPEG[i]), ("txt", f"dog {i}"))]
    paths = [write_tar(tmp_path / "0.tar", [*members, ("../../evil.jpg", JPEG[0])]), str(tmp_path / "1.tar")]
    Path(paths[1]).write_bytes(b"no tar " * 200)
    with pytest.raises(DataError, match=r"4 of 7 records .*") as raised:
        WebDataset(train=paths).split("train")
    assert "1.tar' is not a tar file" in str(raised.value)
    assert "0.tar/../../evil.jpg: the member's name leads out of the shard; do not unpack it" in str(raised.value)
    with pytest.warns(UserWarning, match="4 of 7"):
        assert len(tolerant(train=paths).split("train")) == 3


def test_a_image_that_is_none_is_named_when_it_is_read(tmp_path: Path) -> None:
    (record,) = WebDataset(train=write_tar(tmp_path / "0.tar", {"0.jpg": b"no", "0.txt": "a"})).split("train")
    with pytest.raises(DataError, match=r"Cannot read image '0\.tar/0\.jpg'"):
        read_image(record.image)


def test_shards_are_named_one_way(tmp_path: Path) -> None:
    for options in ({}, {"path": str(tmp_path), "train": "a.tar"}):
        with pytest.raises(ValueError, match="say which shards by path"):
            WebDataset(**options)
    with pytest.raises(DataError, match=r"has no manifest\.json, .* train: .*train-\{0000\.\.0003\}\.tar"):
        WebDataset(path=str(tmp_path))
    with pytest.raises(DataError, match="There is no file"):
        WebDataset(train=str(tmp_path / "none.tar")).split("train")


def test_opening_keeps_no_file_open(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")
    before = len(os.listdir("/proc/self/fd"))
    train = WebDataset(train=shards(tmp_path)).split("train")
    [told(record) for record in train]
    assert len(os.listdir("/proc/self/fd")) == before
