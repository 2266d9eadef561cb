from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from velm.data.shards.urls import MANIFEST, expand, local_path, read_manifest, short_names
from velm.errors import DataError


def test_brace_ranges_are_written_out() -> None:
    assert expand("a.tar") == ["a.tar"]
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand(["{0..1}/{5..6}.tar", "b.tar"]) == ["0/5.tar", "0/6.tar", "1/5.tar", "1/6.tar", "b.tar"]
    with pytest.raises(DataError, match=r"the range \{3\.\.1\} ends before it begins"):
        expand("a-{3..1}.tar")


def test_short_names_leave_out_the_folder_that_all_are_in() -> None:
    assert short_names(["/data/a/train-0.tar"]) == ["train-0.tar"]
    assert short_names(["/data/train/0.tar", "/data/train/1.tar", "/data/test/0.tar"]) == [
        "train/0.tar", "train/1.tar", "test/0.tar",
    ]  # fmt: skip
    assert short_names(["a/0.tar", "b/0.tar"]) == ["a/0.tar", "b/0.tar"]
    assert short_names(["0.tar"]) == ["0.tar"]


@pytest.fixture
def remote() -> Any:
    """A file of the 'memory' protocol, and its URL."""
    fsspec = pytest.importorskip("fsspec", reason="pip install 'velm[remote]'")
    url = f"memory://{uuid.uuid4().hex}/a.tar"
    with fsspec.open(url, "wb") as file:
        file.write(b"content")
    return url


def test_a_remote_shard_is_fetched_once(remote: str, tmp_path: Path) -> None:
    import fsspec

    cache = str(tmp_path / "cache")
    path = local_path(remote, cache)
    assert Path(path).read_bytes() == b"content"
    fsspec.filesystem("memory").rm(remote)
    assert local_path(remote, cache) == path
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [Path(path).name]  # nothing half is left


def test_the_users_cache_is_where_it_goes(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Path(local_path(remote, None)).parent == tmp_path / "velm" / "shards"


def test_what_cannot_be_fetched_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="pip install 'velm[remote]'")
    with pytest.raises(DataError, match=r"Cannot fetch memory://nowhere/a\.tar: FileNotFoundError"):
        local_path("memory://nowhere/a.tar", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.open", lambda *_: (_ for _ in ()).throw(ImportError("Install s3fs")))
    with pytest.raises(ImportError, match=r"s3://b/a\.tar needs .* not installed.*pip install 'velm\[remote\]'"):
        local_path("s3://b/a.tar", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").touch()
    with pytest.raises(DataError, match=r"Did you mean 'train-0\.tar'"):
        local_path(str(tmp_path / "train-1.tar"), None)


@pytest.mark.parametrize("content", ["{", "[]", '{"shards": [{}]}', json.dumps({"shards": []})])
def test_another_manifest_is_refused(tmp_path: Path, content: str) -> None:
    assert read_manifest(str(tmp_path)) is None
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DataError, match="was not written by velm pack"):
        read_manifest(str(tmp_path))
