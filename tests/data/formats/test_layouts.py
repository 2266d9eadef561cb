"""The table of layouts in docs/data.md is true, and each layout is recognised when another reader is given its file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from layouts import MAKERS, coco_content, conversation, images, lines, write

from velm.data.base import EncodedImage
from velm.data.images.decode import read_image
from velm.data.tables.layouts import suggest_layout
from velm.errors import DataError
from velm.registry import datasets

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## Layouts\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
assert SECTION is not None
ROWS = [
    [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in SECTION[1].splitlines()
    if re.search(r"\{name: ", line) and line.startswith("|")
]


def test_every_layout_has_a_row() -> None:
    assert [row[0] for row in ROWS] == list(MAKERS)


@pytest.mark.parametrize(("layout", "example", "dataset"), ROWS, ids=[row[0] for row in ROWS])
def test_a_layout_is_read_as_the_manual_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, example: str, dataset: str
) -> None:
    MAKERS[layout](tmp_path)
    monkeypatch.chdir(tmp_path)
    train = datasets.build(yaml.safe_load(dataset.strip("`"))).split("train")
    assert len(train) >= 5
    assert not getattr(train, "bad_samples", [])
    for record in train:
        assert all(text.strip() for text in record.texts)
        assert isinstance(record.image, EncodedImage) or Path(record.image).is_file()
    assert read_image(train[0].image).size == (8, 8)
    if example:
        files = [path for path in tmp_path.rglob("*") if path.suffix in (".csv", ".json", ".jsonl", ".txt")]
        assert any(holds(path.read_text(encoding="utf-8"), example.strip("`")) for path in files if path.name[0] != ".")


def holds(content: str, example: str) -> bool:
    """Whether the example is a line of the content, or its first entries."""
    if not example.startswith(("{", "[")):
        return example in content.splitlines()
    if "\n" in content.strip():
        return example in content.splitlines()
    shown, whole = json.loads(example.rstrip(",]") + "]" if example[0] == "[" else example), json.loads(content)
    if isinstance(shown, list):
        return bool(shown == whole[: len(shown)])
    return all(value[0] == whole[key][0] for key, value in shown.items())


@pytest.mark.parametrize(
    ("layout", "file", "given", "suggested"),
    [
        ("COCO", "annotations/captions_train2017.json", "karpathy", "coco"),
        ("COCO", "annotations/captions_train2017.json", "jsonl", "coco"),
        ("COCO", "annotations/captions_train2017.json", "json", "coco"),
        ("COCO", "annotations/captions_train2017.json", "flickr8k", "coco"),
        ("COCO", "annotations/captions_train2017.json", "csv", "coco"),
        ("COCO", "annotations/captions_train2017.json", "llava", "coco"),
        ("Karpathy's splits", "dataset_coco.json", "coco", "karpathy"),
        ("Karpathy's splits", "dataset_coco.json", "json", "karpathy"),
        ("JSON array (BLIP, LAVIS)", "train.json", "karpathy", "json"),
        ("JSON array (BLIP, LAVIS)", "train.json", "coco", "json"),
        ("JSON array (BLIP, LAVIS)", "train.json", "llava", "json"),
        ("Flickr8k, Flickr30k", "Flickr8k_text/Flickr8k.token.txt", "tsv", "flickr8k"),
        ("Flickr8k, Flickr30k", "Flickr8k_text/Flickr8k.token.txt", "csv", "flickr8k"),
        ("Kaggle's Flickr8k", "captions.txt", "csv", "flickr8k"),
        ("Kaggle's Flickr30k", "flickr30k_images/results.csv", "csv", "flickr30k"),
        ("LLaVA", "llava_instruct.json", "json", "llava"),
        ("LLaVA", "llava_instruct.json", "coco", "llava"),
        ("Chinese-CLIP (MUGE)", "muge/train_imgs.tsv", "tsv", "chinese_clip"),
        ("Chinese-CLIP (MUGE)", "muge/train_texts.jsonl", "jsonl", "chinese_clip"),
    ],
)
def test_a_file_of_another_layout_is_recognised(
    tmp_path: Path, layout: str, file: str, given: str, suggested: str
) -> None:
    """What the message says to type reads the file."""
    MAKERS[layout](tmp_path)
    with pytest.raises(DataError, match=r"looks like .*: set dataset: \{name: ") as raised:
        datasets.build({"name": given, "path": str(tmp_path / file)}).split("train")
    config = yaml.safe_load(re.search(r"set dataset: (\{.*\})", str(raised.value))[1])  # type: ignore[index]
    assert len(str(raised.value)) < 3000
    assert config == {"name": suggested, "path": str(tmp_path / file)}
    options = {"image_column": "image", "text_column": "caption", "split_column": None}
    assert len(datasets.build({**config, **(options if suggested == "json" else {})}).split("train")) >= 10


@pytest.mark.parametrize(
    "content",
    [
        "image_path,text\na.jpg,a dog\n", '{"file_name": "a.jpg", "text": "a dog"}\n', "", "a dog\n\nruns\n",
        '{"images": "a.jpg", "annotations": "a dog"}\n', "a\tb\n",
    ],
)  # fmt: skip
def test_other_files_are_not_taken_for_a_layout(tmp_path: Path, content: str) -> None:
    write(tmp_path / "a", content)
    assert suggest_layout(str(tmp_path / "a"), name="csv") == ""
    assert suggest_layout(str(tmp_path)) == ""


def test_conceptual_captions_are_to_be_downloaded(tmp_path: Path) -> None:
    write(tmp_path / "Train.tsv", lines(f"a dog number {n}\thttps://example.org/{n}.jpg" for n in range(3)))
    with pytest.raises(DataError, match=r"no header line, as Conceptual Captions.*sed -i .*img2dataset --url_list"):
        datasets.build({"name": "tsv", "path": str(tmp_path / "Train.tsv")}).split("train")


# -- COCO -------------------------------------------------------------------------------------------------------------


def built(folder: Path, config: dict, split: str = "train"):  # type: ignore[no-untyped-def]
    return datasets.build({"path": str(folder), **config}).split(split)


@pytest.mark.parametrize("places", ["{split}2017", "images/{split}2017", "coco/{split}", "images", "."])
def test_the_images_of_coco_are_found(tmp_path: Path, places: str) -> None:
    for split, numbers in (("train", range(5)), ("val", range(5, 7))):
        images(tmp_path / places.format(split=split), "{:012d}.jpg", numbers)
        write(tmp_path / f"annotations/captions_{split}2017.json", coco_content(numbers))
    for path in ("annotations", "annotations/captions_train2017.json", "."):
        for split, size in (("train", 5), ("val", 2)):
            records = built(tmp_path / path, {"name": "coco"}, split)
            assert len(records) == size
            assert all(Path(record.image).is_file() and len(record.texts) == 2 for record in records)
    with pytest.raises(DataError, match=r"no split 'test'. It has: 'train' \(5 images\), 'val' \(2 images\)"):
        built(tmp_path / "annotations", {"name": "coco"}, "test")


def test_a_root_of_one_split_serves_the_others(tmp_path: Path) -> None:
    MAKERS["COCO"](tmp_path)
    config = {"name": "coco", "root": str(tmp_path / "train2017")}
    path = tmp_path / "annotations/captions_train2017.json"
    assert [len(built(path, config, split)) for split in ("train", "val")] == [18, 2]


def test_other_data_in_coco_s_layout(tmp_path: Path) -> None:
    """The name says the split as it does, and file names may have folders; a name without a split is hashed."""
    images(tmp_path / "pictures", "{:012d}.jpg", range(30))
    write(tmp_path / "dev.json", coco_content(range(3)))
    write(tmp_path / "latest.json", coco_content(range(30)))
    config = {"name": "coco", "root": str(tmp_path / "pictures"), "val_fraction": 0.3, "test_fraction": 0.3}
    assert len(built(tmp_path / "dev.json", config, "val")) == 3
    parts = [{r.image_id for r in built(tmp_path / "latest.json", config, split)} for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 30


def test_what_is_wrong_with_coco_is_named(tmp_path: Path) -> None:
    content = coco_content(range(3), lambda n: [] if n == 1 else [" "] if n == 2 else ["a dog"])
    content["annotations"].append({"image_id": 9, "caption": "nothing"})
    write(tmp_path / "captions_train2017.json", content)
    with pytest.raises(DataError) as raised:
        built(tmp_path, {"name": "coco", "check_files": False})
    message = str(raised.value)
    assert "3 of 4 records" in message
    assert "image_id 9: there is no image with this id" in message
    assert "000000000001.jpg: it has no text" in message
    assert "000000000002.jpg: text 1 is empty" in message
    write(tmp_path / "captions_train2014.json", content)
    with pytest.raises(DataError, match=r"both of 'train': set path to one of them"):
        built(tmp_path, {"name": "coco"})
    write(tmp_path / "instances.json", {"images": [], "annotations": [{"image_id": 1, "bbox": []}]})
    with pytest.raises(DataError, match=r"KeyError: 'caption'. Annotations of objects have no captions"):
        built(tmp_path / "instances.json", {"name": "coco"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no annotations named by split, such as captions_train2017.json"):
        built(tmp_path / "empty", {"name": "coco"})


def test_missing_images_of_coco(tmp_path: Path) -> None:
    """They are not looked for in other data that lies beside the folder."""
    images(tmp_path / "other", "{:012d}.jpg")
    write(tmp_path / "data/captions_train2017.json", coco_content(range(17, 20)))
    with pytest.raises(DataError, match=r"3 of 3 records .*(\n.*)*Put the images there, or set root"):
        built(tmp_path / "data", {"name": "coco"})


# -- Flickr -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [".", "Flickr8k_text", "Flickr8k_text/Flickr8k.token.txt"])
def test_lists_of_images_are_the_splits_of_flickr8k(tmp_path: Path, path: str) -> None:
    MAKERS["Flickr8k, Flickr30k"](tmp_path)
    train, val = (built(tmp_path / path, {"name": "flickr8k"}, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (17, 2)  # 20.jpg is in no list
    assert train[0].image_id == "17.jpg"
    assert train[0].texts == ("a dog runs", "dog number 17, brown")
    write(tmp_path / "Flickr8k_text/Flickr_8k.testImages.txt", "17.jpg\n")
    with pytest.raises(DataError, match="name '17' in 'test' and in 'train'"):
        built(tmp_path / path, {"name": "flickr8k"}, "val")


@pytest.mark.parametrize("layout", ["Kaggle's Flickr8k", "Kaggle's Flickr30k"])
def test_without_lists_names_decide(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path)
    config = {"name": "flickr8k", "val_fraction": 0.3, "test_fraction": 0.3}
    parts = [built(tmp_path, config, split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 20
    for record in (record for part in parts for record in part):
        number = Path(record.image).stem
        assert record.texts == ("a dog runs", f"dog number {number}, brown")


def test_lines_that_name_no_caption(tmp_path: Path) -> None:
    images(tmp_path / "Images", numbers=range(3))
    config = {"name": "flickr8k", "val_fraction": 0, "test_fraction": 0}
    write(tmp_path / "a.token", b"0.jpg#0\ta dog\n\n1.jpg a cat\n2.jpg#0\ta \xe4\n")
    with pytest.raises(DataError, match=r"2 of 3 records .*\n.*line 4: the line is not UTF-8.*\n.*line 3: it names no"):
        built(tmp_path / "a.token", config)
    write(tmp_path / "captions.txt", "image,caption\n0.jpg,a dog, brown\n1.jpg\n")
    with pytest.raises(DataError, match=r"1 of 2 records .*\n.*1.jpg.*: the row has 1 columns, not 2"):
        built(tmp_path / "captions.txt", config)
    write(tmp_path / "notes.txt", "some notes\n")
    with pytest.raises(DataError, match=r"is not a file of Flickr8k or Flickr30k: its first line .*'some notes'"):
        built(tmp_path / "notes.txt", config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has none of Flickr8k.token.txt"):
        built(tmp_path / "empty", config)


# -- LLaVA ------------------------------------------------------------------------------------------------------------

ALL = {"name": "llava", "val_fraction": 0, "test_fraction": 0}


def test_questions_are_texts_and_answers_targets(tmp_path: Path) -> None:
    MAKERS["LLaVA"](tmp_path)
    train = built(tmp_path / "llava_instruct.json", ALL)
    assert (train[0].texts, train[0].targets) == (("What runs?",), ("a dog",))
    assert (train[1].texts, train[1].targets) == (("What runs?", "How?"), ("a dog", "fast"))
    captions = built(tmp_path / "llava_instruct.json", {**ALL, "use": "captions"})
    assert (captions[1].texts, captions[1].targets) == (("a dog", "fast"), None)


def test_other_spellings_of_conversations(tmp_path: Path) -> None:
    images(tmp_path, numbers=range(3))
    user, assistant = {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "a dog"}
    rows = [
        {"images": ["0.jpg"], "messages": [{"role": "system", "content": "Be kind."}, user, assistant]},
        conversation(None, "Hello", "Hello!"),
        conversation("1.jpg", "What?\n<image>", "a cat"),
        conversation("1.jpg", "Which colour?", "black"),
    ]
    write(tmp_path / "a.jsonl", lines(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="1 entries of .* have no image and are left out"):
        train = built(tmp_path / "a.jsonl", ALL)
    assert [(r.image_id, r.texts, r.targets) for r in train] == [
        ("0.jpg", ("What?",), ("a dog",)),
        ("1.jpg", ("What?", "Which colour?"), ("a cat", "black")),
    ]


def test_entries_that_are_no_conversation_about_an_image(tmp_path: Path) -> None:
    images(tmp_path, numbers=range(3))
    rows = [
        conversation("0.jpg", "What?", "a dog"), conversation("1.jpg", "What?"), {"image": "1.jpg"},
        {**conversation(None, "a", "b"), "images": ["0.jpg", "1.jpg"]}, conversation("2.jpg", "What?", " "), 7,
    ]  # fmt: skip
    write(tmp_path / "a.json", rows)
    with pytest.raises(DataError) as raised:
        built(tmp_path / "a.json", ALL)
    for words in (
        "5 of 6 records", "row 2: nobody answers in it", "row 3: it has no list of turns", "row 4: it has 2 images",
        "row 6: the row is not a JSON object: 7", "text 1 is empty",
    ):  # fmt: skip
        assert words in str(raised.value)
    write(tmp_path / "b.json", {"text": "a dog"})
    with pytest.raises(DataError, match="has no conversations as LLaVA"):
        built(tmp_path / "b.json", ALL)


# -- Chinese-CLIP -----------------------------------------------------------------------------------------------------


def test_texts_and_images_of_chinese_clip(tmp_path: Path) -> None:
    MAKERS["Chinese-CLIP (MUGE)"](tmp_path)
    texts = [{"text_id": 1, "text": "两只狗", "image_ids": [35, "36"]}, {"text_id": 2, "text": "猫", "image_ids": [36]}]
    write(tmp_path / "muge/valid_texts.jsonl", lines(map(json.dumps, texts)))
    for path in ("muge", "muge/train_imgs.tsv"):
        val = built(tmp_path / path, {"name": "chinese_clip"}, "val")
        assert [(r.image_id, r.texts) for r in val] == [("35", ("两只狗",)), ("36", ("两只狗", "猫"))]
    train = built(tmp_path / "muge", {"name": "chinese_clip"})
    images(tmp_path, numbers=range(17, 35))
    for record in train:
        assert record.image.load() == (tmp_path / f"{record.image_id}.jpg").read_bytes()
    content = (tmp_path / "muge/train_imgs.tsv").read_text().replace("+", "-").replace("/", "_")
    write(tmp_path / "muge/train_imgs.tsv", content.replace("\n", "\r\n"))
    for ours, record in zip(built(tmp_path / "muge", {"name": "chinese_clip"}), train, strict=True):
        assert ours.image.load() == (tmp_path / f"{record.image_id}.jpg").read_bytes()


def test_what_is_wrong_with_chinese_clip_is_named(tmp_path: Path) -> None:
    config = {"name": "chinese_clip"}
    with pytest.raises(DataError, match="has no images as Chinese-CLIP"):
        built(tmp_path, config)
    with pytest.raises(DataError, match="There is no folder"):
        built(tmp_path / "none", config)
    write(tmp_path / "train_imgs.tsv", "1\taGk=\n1\taGk=\n2\taGk=\nnothing\n")
    with pytest.raises(DataError, match=r"train_texts.jsonl', the texts of"):
        built(tmp_path, config)
    rows = ['{"text": "a", "image_ids": [1, 3]}', '{"text_id": 1}', "no json"]
    write(tmp_path / "train_texts.jsonl", lines(rows))
    with pytest.raises(DataError) as raised:
        built(tmp_path, config)
    for words in (
        "imgs.tsv, line 2: the id '1' comes twice", "imgs.tsv, line 4: the line is not 'id<TAB>base64'",
        "texts.jsonl, row 1: there is no image with the id 3", "texts.jsonl, row 2: the row lacks 'text'",
        "texts.jsonl, row 3: the row is not JSON",
    ):  # fmt: skip
        assert words in str(raised.value)
    assert any(bad.cause == "it has no text" for bad in raised.value.bad_samples)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"no split 'val'. It has: 'train' \(train_imgs.tsv\)"):
        built(tmp_path, config, "val")


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "indented array", "lines", "BOM", "array in lines"])
def test_lines_and_arrays_are_the_same_rows(tmp_path: Path, form: str) -> None:
    rows = [{"text": ["a dog", "a brown dog"], "n": 1}, {"text": "Ωμέγα", "n": 2}]
    each = [json.dumps(row, ensure_ascii=False) for row in rows]
    content = {
        "array": json.dumps(rows), "indented array": "\n" + json.dumps(rows, indent=2), "lines": lines(each),
        "BOM": "\ufeff" + json.dumps(rows), "array in lines": "[\n" + ",\n".join(each) + "\n]\n",
    }  # fmt: skip
    write(tmp_path / "a.json", content[form])
    config = {"name": "json", "image_column": None, "image_id_column": "n", "split_column": None}
    assert [r.texts for r in built(tmp_path / "a.json", config)] == [("a dog", "a brown dog"), ("Ωμέγα",)]


def test_arrays_that_are_cut_off_and_items_that_are_no_objects(tmp_path: Path) -> None:
    config = {"name": "json", "image_column": None, "image_id_column": None, "split_column": None}
    write(tmp_path / "a.json", '[{"text": "a dog"},\n{"text": "a c')
    with pytest.raises(DataError, match=r"is one array or object of JSON, and cannot be read as such: .*line 2"):
        built(tmp_path / "a.json", config)
    write(tmp_path / "a.json", '[{"text": "a dog"}, "a cat", null]')
    with pytest.raises(DataError, match=r"2 of 3 records .*\n.*row 2: .*: \"a cat\"\n.*row 3: .*: null"):
        built(tmp_path / "a.json", config)
    write(tmp_path / "a.json", '["a", 1]\n{"text": "a dog"}\n')
    with pytest.raises(DataError, match=r"1 of 2 records .*\n.*row 1: the row is not a JSON object: \[\"a\", 1\]"):
        built(tmp_path / "a.json", config)


def test_a_conversation_of_llava_or_the_cauldron_is_one_text_with_its_history(tmp_path):
    MAKERS["LLaVA"](tmp_path)
    rows = json.loads((tmp_path / "llava_instruct.json").read_text())
    turns = [{"user": "What runs?", "assistant": "a dog"}, {"user": "How?", "assistant": "fast"}]
    cauldron = [{"images": [row["image"]], "texts": turns[: len(row["conversations"]) // 2]} for row in rows]
    (tmp_path / "cauldron.json").write_text(json.dumps(cauldron))
    for name in ("llava_instruct.json", "cauldron.json"):
        train = built(tmp_path / name, {**ALL, "use": "conversations"})
        assert (train[1].texts, train[1].targets) == (("How?",), ("fast",))
        assert train[1].histories == ((("What runs?", "a dog"),),)
        assert (train[0].texts, train[0].histories) == (("What runs?",), ((),))
