"""Paths in part configs: from the working folder, in the home folder, or beside the config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from velm.errors import DataError, MissingSplitError
from velm.registry.locate import locate, locate_path, name_places


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """exp/captions.csv, exp/images/, exp/shards/0.tar, other/captions.csv; the working folder has none."""
    for name in ("exp/images", "exp/shards", "other", "home"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("exp/captions.csv", "exp/shards/0.tar", "other/captions.csv", "home/mine.csv"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


CASES: list[tuple[Any, Any]] = [
    ({"name": "csv", "path": "captions.csv"}, {"name": "csv", "path": "exp/captions.csv"}),
    ({"name": "csv", "path": "exp/captions.csv"}, {"name": "csv", "path": "exp/captions.csv"}),
    ({"name": "csv", "path": "captions.csv", "root": "images"},
     {"name": "csv", "path": "exp/captions.csv", "root": "exp/images"}),
    ({"name": "csv", "path": "nowhere.csv", "text_column": "captions.csv"},
     {"name": "csv", "path": "nowhere.csv", "text_column": "captions.csv"}),
    ({"name": "webdataset", "path": "shards/{0..3}.tar"}, {"name": "webdataset", "path": "exp/shards/{0..3}.tar"}),
    ({"name": "webdataset", "train": ["shards/0.tar"], "cache": "x"},
     {"name": "webdataset", "train": ["exp/shards/0.tar"], "cache": "x"}),
    ({"name": "webdataset", "path": "https://a/captions.csv"}, {"name": "webdataset", "path": "https://a/captions.csv"}),
    ({"name": "mixture", "datasets": {"a": {"name": "csv", "path": "captions.csv"}}},
     {"name": "mixture", "datasets": {"a": {"name": "csv", "path": "exp/captions.csv"}}}),
    ({"name": "mixture", "parts": [{"name": "csv", "path": "captions.csv"}]},
     {"name": "mixture", "parts": [{"name": "csv", "path": "exp/captions.csv"}]}),
    ("shapes", "shapes"), (None, None),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), CASES)
def test_a_path_that_is_not_there_is_taken_from_beside_the_config(
    project: Path, config: Any, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert locate(config, ["exp"]) == expected
    assert ("found elsewhere" in capsys.readouterr().err) == (config != expected)


def test_the_home_folder(project: Path) -> None:
    home = str(project / "home/mine.csv")
    assert locate({"name": "csv", "path": "~/mine.csv"}, []) == {"name": "csv", "path": home}
    assert locate({"name": "webdataset", "cache": "~/x"}, [])["cache"] == str(project / "home/x")
    assert locate_path("~/mine.csv", []) == home


def test_paths_of_one_config_come_from_one_folder(project: Path) -> None:
    config = {"name": "csv", "path": "captions.csv", "root": "images"}
    assert locate(config, ["other", "exp"]) == {"name": "csv", "path": "exp/captions.csv", "root": "exp/images"}
    (project / "images").mkdir()
    assert locate(config, ["other", "exp"])["root"] == "exp/images", "not the one that happens to be here"


def test_an_absolute_path_inside_a_project_that_was_moved(project: Path) -> None:
    config = {"name": "csv", "path": "/was/here/captions.csv"}
    assert locate(config, [str(project / "exp")], "/was/here")["path"] == str(project / "exp/captions.csv")
    assert locate(config, [str(project / "exp")], "/was/elsewhere") == config


def test_an_error_says_where_was_looked_and_what_to_type(project: Path) -> None:
    config = {"name": "csv", "path": "captions.tsv"}
    with (
        pytest.raises(DataError, match=r"gone. Paths start from the current folder: looked in .* in .*exp.") as error,
        name_places(config, ["exp"], "--data.dataset"),
    ):
        raise DataError("gone.")
    assert str(error.value).endswith("--data.dataset.path=...")
    assert os.getcwd() in str(error.value)
    for other in (MissingSplitError("no val"), ValueError("a bug")):
        with pytest.raises(type(other), match=f"^{other}$"), name_places(config, [], "--data.dataset"):
            raise other
    with pytest.raises(DataError, match=r"^wrong column$"), name_places({"name": "csv", "path": "exp"}, [], "--x"):
        raise DataError("wrong column")
