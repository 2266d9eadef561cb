"""The Hugging Face hub, with a local stand-in of its client: pushed, read again, strict."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import velm
from velm.errors import CheckpointError, ExportError

REPOSITORY = "someone/model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: a repository is a folder in it."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token: Any = None) -> None:
            self.token = token

        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
            if repo_id.startswith("forbidden/"):
                raise OSError("403 Forbidden\nmore")
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=repo_id)

        def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
            (root / f"{repo_id}@{branch}").mkdir(exist_ok=exist_ok)

        def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, **_: Any) -> str:
            place = root / (repo_id if revision is None else f"{repo_id}@{revision}")
            shutil.copytree(folder_path, place, dirs_exist_ok=True)
            return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(name: str, revision: str | None = None, **_: Any) -> str:
        place = root / (name if revision is None else f"{name}@{revision}")
        if not place.is_dir():
            raise OSError(f"404 {name}\nmore")
        return str(place)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def test_pushed_and_read_again(write_checkpoint: Callable[..., Path], hub: Path) -> None:
    path = write_checkpoint()
    assert velm.push_to_hub(path, REPOSITORY) == f"https://huggingface.co/{REPOSITORY}/commit/1"
    expected = velm.load(path).model.state_dict()
    readers: list[Callable[[], velm.Pipeline]] = [
        lambda: velm.load(f"hf://{REPOSITORY}"), lambda: velm.from_pretrained(REPOSITORY),
        lambda: velm.from_pretrained(hub / REPOSITORY),
    ]  # fmt: skip
    for read in readers:
        found = read().model.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert velm.push_to_hub(hub / REPOSITORY, REPOSITORY, branch="v1")  # an exported folder is pushed as it is
    velm.load(f"hf://{REPOSITORY}@v1")
    with pytest.raises(ExportError, match=r"is exported already, so it takes no format"):
        velm.push_to_hub(hub / REPOSITORY, REPOSITORY, format="velm")
    (hub / REPOSITORY / "model.safetensors").unlink()
    for read in readers:
        with pytest.raises(CheckpointError, match=r"lacks model.safetensors"):
            read()
    with pytest.raises(CheckpointError, match=r"lacks model.safetensors"):
        velm.push_to_hub(hub / REPOSITORY, "someone/other")


@pytest.mark.usefixtures("hub")
def test_what_the_hub_refuses(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hf://someone/nothing cannot be downloaded: 404 someone/nothing Check"):
        velm.load("hf://someone/nothing")
    with pytest.raises(CheckpointError, match=r"'hf://nothing' is no repository of the hub; one is hf://org/name"):
        velm.load("hf://nothing")
    with pytest.raises(CheckpointError, match="is a folder without the files"):
        velm.from_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("")
    with pytest.raises(ExportError, match=r"cannot be pushed to forbidden/model: 403 Forbidden Check"):
        velm.push_to_hub(tmp_path, "forbidden/model")
