"""`velm index`, `velm search` and `velm duplicates` as typed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from photos import write_image

from velm.cli import main as velm
from velm.search import Index


@pytest.fixture
def photos(tmp_path):
    for seed in range(6):
        write_image(tmp_path / "photos" / f"{seed}.png", seed)
    return tmp_path / "photos"


@pytest.fixture
def index(write_checkpoint, photos, tmp_path, capsys):
    place = tmp_path / "index"
    assert velm(["index", str(write_checkpoint()), str(photos), "--output", str(place)]) == 0
    capsys.readouterr()
    return str(place)


def test_indexed_again_and_searched(index, photos, tmp_path, capsys):
    (photos / "0.png").unlink()
    (photos / "bad.png").write_bytes(b"no image")
    assert velm(["index", str(tmp_path / "tiny.ckpt"), str(photos), "--output", index, "--exclude", "1.*"]) == 1
    out, err = capsys.readouterr()
    assert "4 images of" in out
    assert "0 added, 0 changed, 0 renamed, 2 deleted, 4 unchanged" in out
    assert "bad.png: Cannot read image" in err
    assert "1 images cannot be read and are never found" in err
    assert velm(["search", index, "a red circle", "-k", "3"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert all(Path(path).is_file() and -1 <= float(score) <= 1 for path, score in lines)
    shutil.rmtree(photos / "nothing", ignore_errors=True)
    assert velm(["index", str(tmp_path / "tiny.ckpt"), str(photos), "--output", index]) == 1
    assert "4 unchanged" in capsys.readouterr().out  # --exclude is remembered


def test_by_image_and_text_as_json_and_as_a_page(index, photos, tmp_path, capsys):
    page = tmp_path / "page.html"
    image = str(photos / "2.png")
    arguments = [
        "--image",
        image,
        "--minus",
        "<b>star",
        "--weights",
        "image=2,minus=0.1",
        "--json",
        "--html",
        str(page),
    ]
    assert velm(["search", index, *arguments]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0]["path"] == image
    assert len(found) == 6
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 6
    assert "<b>star" not in text
    assert "&lt;b&gt;star" in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)


def test_a_dataset_is_indexed_and_a_vanished_image_is_a_grey_box(write_checkpoint, tmp_path, capsys):
    checkpoint, place = str(write_checkpoint()), str(tmp_path / "scenes")
    dataset = "{name: shapes, test_size: 4, image_size: 32}"
    assert velm(["index", checkpoint, dataset, "--output", place]) == 0
    assert velm(["index", checkpoint, "--data.dataset.test_size=4", "--output", place]) == 0
    assert "4 unchanged" in capsys.readouterr().out
    assert velm(["search", place, "a star", "--html", str(tmp_path / "page.html")]) == 0
    assert "class='absent'" in (tmp_path / "page.html").read_text()


def test_an_approximate_index_says_what_it_finds(index, photos, tmp_path, capsys):
    pytest.importorskip("faiss")
    assert velm(["index", str(tmp_path / "tiny.ckpt"), str(photos), "--output", index, "--ann", "hnsw"]) == 0
    assert "hnsw: recall@10 against exact search 1.000, on 6 of its own images" in capsys.readouterr().out
    assert velm(["search", index, "a star", "--ann", "hnsw"]) == 0
    approximate = capsys.readouterr().out
    assert velm(["search", index, "a star"]) == 0
    assert capsys.readouterr().out == approximate


def test_duplicates_are_printed_and_nothing_is_deleted(index, photos, tmp_path, capsys):
    shutil.copy2(photos / "0.png", photos / "copy.png")
    assert velm(["index", str(tmp_path / "tiny.ckpt"), str(photos), "--output", index]) == 0
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert velm(["duplicates", index, "--threshold", "1", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert f"keep\t{photos / '0.png'}\t24 x 20" in out
    assert "Kept: the most pixels, then the most bytes, then the first path." in out
    assert "class='marked'" in page.read_text()
    assert velm(["duplicates", index, "--threshold", "1", "--json"]) == 0
    group = json.loads(capsys.readouterr().out.splitlines()[0])
    assert group["keep"]["path"] == str(photos / "0.png")
    assert (photos / "copy.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "INDEX"], "give a text, --image, or both"),
        (["search", "INDEX", "--image", "nowhere.jpg"], "There is no image 'nowhere.jpg'"),
        (["search", "INDEX", "red", "--weights", "text"], "--weights 'text' has no number"),
        (["search", "INDEX", "red", "--weights", "words=1"], "Unknown weight 'words'"),
        (["search", "nowhere", "red"], "There is no index 'nowhere'"),
        (["search", "PHOTOS", "red"], "is no index: it has no index.json"),
        (["search", "INDEX", "red", "--checkpoint", "OTHER"], "is of another model"),
        (["search", "INDEX", "red", "--checkpoint", "gone.ckpt"], "No checkpoint at gone.ckpt"),
        (["search", "INDEX", "red", "--ann", "hnsw"], "has no approximate index hnsw"),
        (["duplicates", "INDEX", "--threshold", "2"], "threshold 2.0 is no cosine of duplicates"),
        (["index", "OTHER", "PHOTOS", "--output", "INDEX"], "Update it with that checkpoint"),
        (["index", "CHECKPOINT", "nowhere", "--output", "new"], "There is no folder 'nowhere'"),
        (["index", "CHECKPOINT", "PHOTOS", "--output", "PHOTOS"], "is not empty and is no index"),
    ],
)
def test_bad_input_is_named_without_a_traceback(
    index, photos, write_checkpoint, tmp_path, capsys, monkeypatch, arguments, words
):
    if "hnsw" in arguments:
        pytest.importorskip("faiss")
    monkeypatch.chdir(tmp_path)
    other = write_checkpoint("other.ckpt", text_encoder={"name": "rnn", "dim": 24}) if "OTHER" in arguments else ""
    known = {"INDEX": index, "PHOTOS": str(photos), "CHECKPOINT": str(tmp_path / "tiny.ckpt"), "OTHER": str(other)}
    assert velm([known.get(word, word) for word in arguments]) == 2
    assert words in capsys.readouterr().err
    assert len(Index.open(index)) == 6


def test_fewer_than_one_image_is_refused(index, capsys):
    with pytest.raises(SystemExit):
        velm(["search", index, "red", "-k", "0"])
    assert "0 is too small; it is at least 1" in capsys.readouterr().err
