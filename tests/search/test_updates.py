"""An index follows its folder: new, changed, renamed, deleted and bad images, also where updates are interrupted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from following import assert_same_index, disturb
from photos import write_image
from PIL import Image

from velm.errors import DataError, PipelineError, SearchError
from velm.pipeline import load
from velm.search import Index, store, update
from velm.search.sources import folder_source
from velm.search.writer import Writer


def test_what_has_changed_is_noticed_and_rows_stay(follow, photos, tmp_path):
    assert follow().added == 8
    before = {row.image_path: place for place, row in Writer(tmp_path / "index").places()}
    os.rename(photos / "0.png", photos / "sub" / "renamed.png")
    write_image(photos / "1.png", seed=101)
    (photos / "2.png").unlink()
    shutil.copy2(photos / "3.png", photos / "copy.png")
    os.utime(photos / "4.png", (1_600_000_000, 1_600_000_000))
    write_image(photos / "new.png", seed=102)
    done = follow()
    assert (done.added, done.changed, done.renamed, done.deleted, done.unchanged) == (2, 1, 1, 1, 5)
    rows = {row.image_path: place for place, row in Writer(tmp_path / "index").places() if row.status == "ok"}
    assert rows["sub/renamed.png"] == before["0.png"]
    assert all(rows[path] == before[path] for path in ("3.png", "4.png", "5.png", "sub/6.png", "sub/7.png"))
    assert set(rows) == {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")}


def test_an_unchanged_folder_is_not_read_again(follow, photos, monkeypatch):
    follow()
    monkeypatch.setattr("velm.search.reading._content", lambda path: pytest.fail(f"{path} was read"))
    assert follow().unchanged == 8


def test_a_change_within_the_clock_s_grain_is_noticed(follow, photos, tmp_path):
    """A file that is as young as the clock is coarse may change and keep size and time."""
    path = photos / "0.bmp"
    Image.new("RGB", (8, 8), "red").save(path)
    follow()
    time = os.stat(path).st_mtime_ns
    Image.new("RGB", (8, 8), "blue").save(path)
    os.utime(path, ns=(time, time))
    assert follow().changed == 1


def test_verify_finds_a_change_that_size_and_time_hide(follow, photos):
    follow()
    Image.new("RGB", (8, 8), "red").save(photos / "0.bmp")
    os.utime(photos / "0.bmp", (1e9, 1e9))
    follow()
    Image.new("RGB", (8, 8), "blue").save(photos / "0.bmp")
    os.utime(photos / "0.bmp", (1e9, 1e9))
    assert follow().changed == 0
    assert follow(verify=True).changed == 1


def test_bad_images_are_kept_apart_with_the_reason(follow, photos, tmp_path, pipeline):
    follow()
    (photos / "0.png").write_bytes(b"no image")
    (photos / "half.png").write_bytes((photos / "1.png").read_bytes()[:60])
    os.symlink(photos / "nowhere.png", photos / "link.png")
    os.mkfifo(photos / "pipe.png")
    done = follow()
    assert set(done.bad) == {"0.png", "half.png", "link.png", "pipe.png"}
    assert "cannot identify image file" in done.bad["0.png"]
    assert done.bad["link.png"].startswith("its link leads nowhere")
    assert done.bad["pipe.png"] == "it is no regular file"
    index = Index.open(tmp_path / "index")
    assert len(index) == 7
    (matches,) = index.search(index.query(pipeline, text="a red circle"), k=99)
    assert {match.path for match in matches} == {f"{i}.png" for i in range(1, 6)} | {"sub/6.png", "sub/7.png"}
    for match in matches:  # no row was shifted
        (own,) = index.search(index.query(pipeline, image=index.path(match.row)), k=1)
        assert own[0].row == match.row
    rows = index.rows
    assert set(follow().bad) == set(done.bad)  # tried again, in the same rows
    assert Index.open(tmp_path / "index").rows == rows
    write_image(photos / "0.png", seed=0)
    assert "0.png" not in follow().bad
    assert len(Index.open(tmp_path / "index")) == 8


def test_deleted_rows_go_when_it_is_compacted(follow, photos, tmp_path):
    follow()
    for name in ("0.png", "1.png"):
        (photos / name).unlink()
    follow()
    assert Index.open(tmp_path / "index").rows == 8
    assert follow(compact=True).compacted
    assert Index.open(tmp_path / "index").rows == len(Index.open(tmp_path / "index")) == 6
    update(follow.pipeline, folder_source(photos), tmp_path / "new")
    assert_same_index(tmp_path / "index", tmp_path / "new")


def test_many_parts_are_compacted_by_themselves(follow, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("velm.search.updates.PARTS", 2)
    follow()
    for seed in (20, 21):
        write_image(photos / f"{seed}.png", seed)
        compacted = follow().compacted
    assert compacted
    assert len(Index.open(tmp_path / "index").about["parts"]) == 1
    assert len(list((tmp_path / "index" / "img_emb").iterdir())) == 1


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_at_any_write_it_goes_on_and_equals_one_made_anew(follow, photos, tmp_path, monkeypatch, seed):
    """20 interruptions at seeded writes, with files renamed, deleted, broken and added meanwhile."""
    monkeypatch.setattr("velm.search.updates.PART", 2)
    random = np.random.default_rng(seed)
    replace, write = os.replace, store.durable.__enter__
    left = 0

    class Killed(BaseException):
        pass

    def interrupt(call, *args):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return call(*args)

    monkeypatch.setattr(os, "replace", lambda *args: interrupt(replace, *args))
    monkeypatch.setattr(store.durable, "__enter__", lambda self: interrupt(write, self))
    killed = 0
    for number in range(20):
        disturb(photos, random, number)
        left = int(random.integers(0, 12))
        try:
            follow(batch_size=2, compact=bool(random.random() < 0.2))
        except Killed:
            killed += 1
        if (tmp_path / "index" / "index.json").is_file():
            Index.open(tmp_path / "index")  # whole at every moment
    assert killed >= 8
    left = 10**6
    follow()
    update(follow.pipeline, folder_source(photos), tmp_path / "new")
    assert_same_index(tmp_path / "index", tmp_path / "new")
    assert {path.name for path in (tmp_path / "index" / "img_emb").iterdir()} == {
        Path(part.vectors).name for part in Index.open(tmp_path / "index").about["parts"]
    }


def test_links_in_circles_end_and_folders_count_once(follow, photos):
    os.symlink(photos, photos / "sub" / "circle")
    os.symlink(photos / "sub", photos / "again")
    assert follow().added == 8


@pytest.mark.parametrize(
    ("exclude", "left"),
    [(("sub",), 6), (("*.png",), 0), (("sub/6.png", "0.*"), 6), (("sub/",), 6), (("caf\u00e9",), 8)],
)
def test_excluded_names_and_paths(photos, exclude, left):
    write_image(photos / "cafe\u0301" / "9.png", seed=9)  # the name as macOS writes it
    found = folder_source(photos, exclude).stamps
    assert len([path for path in found if not path.endswith("9.png")]) == left
    assert any(path.endswith("9.png") for path in found) == (exclude[0] not in ("*.png", "caf\u00e9"))


def test_a_name_in_another_normal_form_keeps_its_vector(follow, photos):
    write_image(photos / "caf\u00e9.png", seed=9)
    follow()
    os.rename(photos / "caf\u00e9.png", photos / "cafe\u0301.png")
    done = follow()
    assert (done.renamed, done.added, done.deleted) == (1, 0, 0)


def test_a_name_that_is_not_utf8_is_bad(follow, photos):
    os.rename(os.fsencode(photos / "0.png"), os.fsencode(photos) + b"/\xff.png")
    assert follow().bad == {"\\udcff.png": "its name is not UTF-8: rename it"}


def test_exif_orientation_and_the_first_frame_of_a_gif(follow, photos, tmp_path, pipeline):
    upright = Image.open(photos / "0.png").convert("RGB").resize((64, 40))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(photos / "upright.tiff")
    turned.save(photos / "turned.tiff", exif=exif)
    frames = [Image.open(photos / f"{i}.png").convert("P") for i in (1, 2)]
    frames[0].save(photos / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(photos / "still.gif")
    assert not follow().bad
    index = Index.open(tmp_path / "index")
    rows = {index.name(row): row for row in range(index.rows)}
    for one, other in (("upright.tiff", "turned.tiff"), ("moving.gif", "still.gif")):
        np.testing.assert_allclose(index.vector(rows[one]), index.vector(rows[other]), atol=1e-3)


def test_a_folder_that_cannot_be_listed_keeps_its_rows(follow, photos, tmp_path, monkeypatch):
    follow()
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    done = follow()
    assert done.unreadable == {"sub": "Permission denied"}
    assert done.deleted == 0
    assert len(Index.open(tmp_path / "index")) == 8


def test_a_moved_folder_is_recognised(follow, photos, tmp_path):
    follow()
    os.rename(photos, tmp_path / "elsewhere")
    done = update(follow.pipeline, folder_source(tmp_path / "elsewhere"), tmp_path / "index")
    assert done.unchanged == 8
    assert Index.open(tmp_path / "index").root == str(tmp_path / "elsewhere")


def test_sources_that_cannot_be_followed(follow, photos, tmp_path):
    pipeline = follow.pipeline
    with pytest.raises(DataError, match=r"There is no folder .*nowhere"):
        folder_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images at all"):
        update(pipeline, folder_source(tmp_path / "empty"), tmp_path / "index")
    follow()
    with pytest.raises(SearchError, match="which is there, not of"):
        update(pipeline, folder_source(tmp_path / "photos" / "sub"), tmp_path / "index")
    with pytest.raises(SearchError, match=r"is of .*photos, not of"):
        update(pipeline, records(tmp_path), tmp_path / "index")
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(SearchError, match="if a disk is not mounted, mount it"):
        follow()
    assert len(Index.open(tmp_path / "index")) == 8


def test_places_that_are_no_index(follow, photos, tmp_path):
    pipeline = follow.pipeline
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(SearchError, match="is not empty and is no index"):
        update(pipeline, folder_source(photos), tmp_path / "foreign")
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["notes.txt"]
    with pytest.raises(SearchError, match="is a file: name a folder"):
        update(pipeline, folder_source(photos), tmp_path / "foreign" / "notes.txt")
    follow()
    with FileLock(tmp_path / "index" / "update.lock"), pytest.raises(SearchError, match="Another process updates"):
        follow()


def test_a_model_that_does_not_align_is_refused(write_checkpoint, photos, tmp_path):
    captioner = load(write_checkpoint(losses={"captioning": {}}, text_encoder=None))
    with pytest.raises(PipelineError, match="not trained to align"):
        update(captioner, folder_source(photos), tmp_path / "index")


def records(tmp_path: Path):
    from velm.data.synthetic.shapes import Shapes
    from velm.search.sources import records_source

    split = Shapes(test_size=5, image_size=32).split("test")
    return records_source(split, {"dataset": {"name": "shapes"}, "split": "test"})


def test_a_dataset_without_files_is_followed_by_content(follow, tmp_path):
    done = update(follow.pipeline, records(tmp_path), tmp_path / "scenes")
    assert done.added == 5
    assert update(follow.pipeline, records(tmp_path), tmp_path / "scenes").unchanged == 5
    index = Index.open(tmp_path / "scenes")
    assert index.path(0) == index.name(0)


def test_an_embedding_that_is_not_finite_is_bad(follow, tmp_path, monkeypatch):
    embed = follow.pipeline.embed_image

    def first_is_nan(encoded):
        vectors = embed(encoded).clone()
        vectors[0] = float("nan")
        return vectors

    monkeypatch.setattr(follow.pipeline, "embed_image", first_is_nan)
    assert list(follow().bad.values()) == ["its embedding is not finite"]
    assert len(Index.open(tmp_path / "index")) == 7
