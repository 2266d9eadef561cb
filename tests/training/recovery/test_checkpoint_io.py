"""A checkpoint is written whole or not at all, the last few are kept, at a path or a URL."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from velm.errors import CheckpointError, ConfigError, RunFailedError
from velm.training.recovery import checkpoint_io as checkpoints
from velm.training.recovery.checkpoint_io import Checkpoints, exists, join, newest_complete


def content(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.full((100,), float(step))}}


@pytest.fixture(params=["path", "file", "memory"])
def place(request: Any, tmp_path: Path) -> str:
    """A folder, as a path or a URL."""
    return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[
        request.param
    ]


def test_a_checkpoint_round_trips(place: str) -> None:
    writer = Checkpoints()
    writer.save_checkpoint(content(3), join(place, "last.ckpt"))
    read = writer.load_checkpoint(join(place, "last.ckpt"))
    assert read["global_step"] == 3
    assert torch.equal(read["state_dict"]["weight"], content(3)["state_dict"]["weight"])
    assert exists(join(place, "last.ckpt"))
    assert not exists(join(place, "last.ckpt.part"))


def test_the_last_k_are_kept(place: str) -> None:
    writer = Checkpoints(keep=2)
    for step in (8, 9, 10, 11):
        writer.save_checkpoint(content(step), join(place, "last.ckpt"))
        writer.save_checkpoint(content(step), join(place, "best.ckpt"))
    for step in (8, 9):
        assert not exists(join(place, f"step_{step}.ckpt"))
    for step in (10, 11):
        assert writer.load_checkpoint(join(place, f"step_{step}.ckpt"))["global_step"] == step
    assert writer.load_checkpoint(join(place, "last.ckpt"))["global_step"] == 11


def test_on_a_disk_the_newest_copy_takes_no_space(tmp_path: Path) -> None:
    Checkpoints(keep=1).save_checkpoint(content(1), tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step_1.ckpt")


def test_a_full_disk_keeps_the_old_checkpoint_and_warns(tmp_path: Path) -> None:
    writer, last = Checkpoints(keep=1), tmp_path / "last.ckpt"
    writer.save_checkpoint(content(1), last)
    (tmp_path / "last.ckpt.part").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match=r"Step 2: .*last.ckpt could not be written .*No space left on device"):
        writer.save_checkpoint(content(2), last)
    assert writer.load_checkpoint(last)["global_step"] == 1
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "step_1.ckpt"}
    with pytest.raises(RunFailedError, match=r"the last save of these failed: .*last.ckpt .*with --resume"):
        writer.refuse_unsaved()
    writer.save_checkpoint(content(3), last)
    writer.refuse_unsaved()
    assert writer.failures == 1
    assert writer.load_checkpoint(last)["global_step"] == 3


def test_a_remote_store_that_fails_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFile

    writer, last = Checkpoints(), f"memory://{uuid.uuid4().hex}/last.ckpt"
    writer.save_checkpoint(content(1), last)
    with monkeypatch.context() as broken:

        def fail(self: Any, data: Any) -> int:
            raise ConnectionResetError("the network is gone")

        broken.setattr(MemoryFile, "write", fail)
        with pytest.warns(UserWarning, match="could not be written .the network is gone"):
            writer.save_checkpoint(content(2), last)
    assert writer.load_checkpoint(last)["global_step"] == 1


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_the_error_of_a_damaged_checkpoint_names_the_newest_complete_one(tmp_path: Path, size: int) -> None:
    writer, last = Checkpoints(keep=3), tmp_path / "last.ckpt"
    for step in (1, 2):
        writer.save_checkpoint(content(step), last)
    for damaged in (last, tmp_path / "step_2.ckpt"):
        data = damaged.read_bytes()
        damaged.unlink()
        damaged.write_bytes(data[:size])
    with pytest.raises(CheckpointError) as raised:
        writer.load_checkpoint(last)
    assert f"{last} is damaged or cut short" in str(raised.value)
    assert f"The newest complete one beside it is of step 1: --ckpt_path={tmp_path}/step_1.ckpt" in str(raised.value)
    (tmp_path / "step_1.ckpt").unlink()
    with pytest.raises(CheckpointError, match="There is no complete checkpoint beside it: start from scratch"):
        writer.load_checkpoint(last)
    assert newest_complete(tmp_path) is None


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*none.ckpt. Look at --ckpt_path"):
        Checkpoints().load_checkpoint(tmp_path / "none.ckpt")


def test_without_hard_links_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    Checkpoints(keep=1).save_checkpoint(content(1), tmp_path / "last.ckpt")
    assert (tmp_path / "step_1.ckpt").read_bytes() == (tmp_path / "last.ckpt").read_bytes()


def test_the_error_of_an_unknown_url_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"nosuch://bucket/last.ckpt cannot be opened: .*nosuch.* pip install"):
        exists("nosuch://bucket/last.ckpt")
