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
from safetensors.torch import load_file, save_file

import velm
from velm.errors import CheckpointError, ExportError

REPOSITORY = "someone/model"


class ConnectError(Exception):
    """As that of httpx2, which is no OSError."""


class Hub:
    """A folder that stands for the hub: a revision of a repository is a folder in it; a commit is whole or none.

    Attributes:
        asked: what the client was called with, by the name of the method.
        files: number of files after which the connection breaks; None: it holds.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.files = root, {}, None
        self.asked: dict[str, dict[str, Any]]
        self.files: int | None

    def place(self, name: str, revision: str | None = None) -> Path:
        return self.root / (name if revision in (None, "main") else f"{name}@{revision}")

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.asked["create_repo"] = options
        if repo_id.startswith("forbidden/"):
            raise OSError("403 Forbidden\nmore")
        self.place(repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self.place(repo_id, branch).mkdir(exist_ok=exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, **options: Any) -> str:
        self.asked["upload_folder"] = options
        place = self.place(repo_id, revision)
        commit = shutil.copytree(place, place.with_name("commit"))
        for old in commit.glob(options["delete_patterns"]):
            old.unlink()
        for number, file in enumerate(sorted(folder_path.iterdir())):
            if number == self.files:
                shutil.rmtree(commit)
                raise ConnectError("")
            shutil.copy(file, commit)
        shutil.rmtree(place)
        commit.rename(place)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(self, name: str, revision: str | None = None, **options: Any) -> str:
        self.asked["snapshot_download"] = options
        if not self.place(name, revision).is_dir():
            raise OSError(f"404 {name}\nmore")
        return str(self.place(name, revision))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> Hub:
    hub = Hub(tmp_path / "hub")

    def api(token: Any = None) -> Hub:
        hub.asked["token"] = {"token": token}
        return hub

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def readers(hub: Hub) -> list[Callable[[], velm.Pipeline]]:
    return [
        lambda: velm.load(f"hf://{REPOSITORY}"), lambda: velm.from_pretrained(REPOSITORY),
        lambda: velm.from_pretrained(hub.place(REPOSITORY)),
    ]  # fmt: skip


def same(pipeline: velm.Pipeline, other: velm.Pipeline) -> bool:
    found, expected = pipeline.model.state_dict(), other.model.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(tensor, found[name]) for name, tensor in expected.items()
    )


def test_pushed_and_read_again(write_checkpoint: Callable[..., Path], hub: Hub) -> None:
    path = write_checkpoint()
    url = velm.push_to_hub(path, REPOSITORY, private=True, token="secret", create_pr=True, commit_message="first")
    assert url == f"https://huggingface.co/{REPOSITORY}/commit/1"
    assert hub.asked["token"] == {"token": "secret"}
    assert hub.asked["create_repo"] == {"private": True, "exist_ok": True}
    assert hub.asked["upload_folder"] == {
        "create_pr": True, "commit_message": "first", "delete_patterns": "*.safetensors",
    }  # fmt: skip
    assert all(same(read(), velm.load(path)) for read in readers(hub))
    with pytest.raises(ExportError, match=r"is exported already, so it takes no format"):
        velm.push_to_hub(hub.place(REPOSITORY), REPOSITORY, format="velm")


def test_a_revision_stays_what_it_was(write_checkpoint: Callable[..., Path], tmp_path: Path, hub: Hub) -> None:
    first = velm.export(write_checkpoint(), tmp_path / "first").folder
    velm.push_to_hub(first, REPOSITORY, branch="v1")  # an exported folder is pushed as it is
    velm.push_to_hub(first, REPOSITORY)
    second = write_checkpoint("wider.ckpt", embed_dim=12)
    velm.push_to_hub(second, REPOSITORY)
    assert same(velm.load(f"hf://{REPOSITORY}"), velm.load(second))
    for pipeline in (velm.load(f"hf://{REPOSITORY}@v1"), velm.from_pretrained(REPOSITORY, revision="v1")):
        assert same(pipeline, velm.load(first))
    velm.from_pretrained(REPOSITORY, token="secret", cache_dir=tmp_path, local_files_only=True)
    assert hub.asked["snapshot_download"] == {
        "token": "secret", "cache_dir": tmp_path, "force_download": False, "local_files_only": True,
    }  # fmt: skip


def test_half_a_repository_is_refused(write_checkpoint: Callable[..., Path], hub: Hub) -> None:
    path = write_checkpoint()
    velm.push_to_hub(path, REPOSITORY)
    weights = hub.place(REPOSITORY) / "model.safetensors"
    whole = weights.read_bytes()

    def require_refusal(message: str) -> None:
        for read in readers(hub):
            with pytest.raises(CheckpointError, match=message):
                read()
        with pytest.raises(CheckpointError, match=message):
            velm.push_to_hub(hub.place(REPOSITORY), "someone/other")
        assert not hub.place("someone/other").exists()

    weights.unlink()
    require_refusal("lacks model.safetensors")
    weights.write_bytes(whole[:-4])
    require_refusal("model.safetensors was changed after it was written")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    require_refusal("model.safetensors was changed after it was written")
    save_file({**load_file(weights), "model.more": torch.zeros(1)}, weights)
    require_refusal("model.safetensors was changed .*Additional: model.more")
    weights.write_bytes(whole)
    assert all(same(read(), velm.load(path)) for read in readers(hub))


def test_an_interrupted_upload_leaves_the_earlier_commit(write_checkpoint: Callable[..., Path], hub: Hub) -> None:
    first, second = write_checkpoint(), write_checkpoint("wider.ckpt", embed_dim=12)
    velm.push_to_hub(first, REPOSITORY)
    hub.files = 2
    with pytest.raises(ExportError, match=r"cannot be pushed to someone/model: ConnectError. Check .*is as before"):
        velm.push_to_hub(second, REPOSITORY)
    assert same(velm.load(f"hf://{REPOSITORY}"), velm.load(first))
    with pytest.raises(ExportError, match=r"cannot be pushed to someone/new: ConnectError"):
        velm.push_to_hub(second, "someone/new")
    with pytest.raises(CheckpointError, match=r"lacks"):
        velm.from_pretrained("someone/new")


@pytest.mark.usefixtures("hub")
def test_what_the_hub_refuses(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"hf://someone/nothing cannot be downloaded: OSError: 404 someone/noth.*Check"
    ):
        velm.load("hf://someone/nothing")
    with pytest.raises(CheckpointError, match=r"'hf://nothing' is no repository of the hub; one is hf://org/name"):
        velm.load("hf://nothing")
    with pytest.raises(CheckpointError, match="is a folder without the files"):
        velm.from_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("")
    with pytest.raises(ExportError, match=r"cannot be pushed to forbidden/model: OSError: 403 Forbidden. Check"):
        velm.push_to_hub(tmp_path, "forbidden/model")


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own errors, without a stand-in: the tests are offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(ExportError, match=r"cannot be pushed to someone/model: "):
        velm.push_to_hub(tmp_path, "someone/model")
    with pytest.raises(CheckpointError, match=r"hf://someone/model cannot be downloaded: "):
        velm.from_pretrained("someone/model", cache_dir=tmp_path / "cache")
