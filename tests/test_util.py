"""A durable file is complete under its name, or not there."""

from __future__ import annotations

import pytest

from velm.util import durable, flat_options


def test_a_durable_file_replaces_the_old_one_when_the_block_ends(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with durable(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write() -> None:
        with durable(path, tmp_path / "_a.1") as file:
            file.write(b"new")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_flat_options_have_dotted_names_and_keep_empty_mappings():
    assert dict(flat_options({"a": {"b": {"c": 1}, "d": {}}, "e": [2]})) == {"a.b.c": 1, "a.d": {}, "e": [2]}
