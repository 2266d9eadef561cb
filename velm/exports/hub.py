"""The Hugging Face hub: `push_to_hub` and `from_pretrained`, with the arguments that huggingface_hub gives them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from velm.checkpoint import is_folder, read_folder
from velm.errors import CheckpointError, ExportError
from velm.exports.formats import export
from velm.onnx.folder import read_folder as read_onnx
from velm.pipeline import Pipeline
from velm.pipeline.loading import pipeline_of
from velm.sources.hub_folders import HUB, download
from velm.util import describe_error

__all__ = ["from_pretrained", "push_to_hub"]


def push_to_hub(
    checkpoint: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Push model using velm",
    **options: Any,
) -> str:
    """Publish a model as a repository that `velm.load("hf://org/name")` reads.

    Args:
        checkpoint: a folder of `velm export`, which is pushed as it is, also one of another format; or what
            `velm.load` takes, which is exported first.
        repo_id: 'org/name'; the repository is created if there is none.
        private, token, branch, create_pr, commit_message: as of `huggingface_hub.ModelHubMixin.push_to_hub`.
        **options: of `velm.export`, where the checkpoint is exported first.

    Returns:
        The URL of the commit.

    Raises:
        CheckpointError: the folder is not whole, or the checkpoint cannot be used.
        ExportError: it cannot be exported, or the hub refuses it.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir() and (folder / "README.md").is_file():
        if options:
            raise ExportError(f"{folder} is exported already, so it takes no {', '.join(options)}.")
        if any(folder.glob("*.onnx")):
            read_onnx(folder)
        elif (folder / "sha256.json").is_file():
            read_folder(folder)
        return _upload(folder, repo_id, private, token, branch, create_pr, commit_message)
    with TemporaryDirectory() as place:
        made = export(checkpoint, Path(place) / repo_id.rpartition("/")[2], **options)
        return _upload(made.folder, repo_id, private, token, branch, create_pr, commit_message)


def _upload(
    folder: Path,
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    branch: str | None,
    create_pr: bool,
    message: str,
) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        # delete_patterns: a weight of an earlier upload must not stay beside those of this one
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=message, revision=branch, create_pr=create_pr,
            delete_patterns="*.safetensors",
        )  # fmt: skip
    except Exception as error:  # of requests, httpx or httpx2, by the release of huggingface_hub
        raise ExportError(
            f"{folder} cannot be pushed to {repo_id}: {describe_error(error)}. Check the name, the network and "
            f"`hf auth login`. An upload is one commit: without it the repository is as before."
        ) from error
    return str(commit)


def from_pretrained(
    pretrained_model_name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    **options: Any,
) -> Pipeline:
    """The pipeline of a published folder; strict: every file is there and unchanged.

    Args:
        pretrained_model_name_or_path: a folder, or 'org/name' of the hub, with or without 'hf://'.
        revision, token, cache_dir, force_download, local_files_only: as of `huggingface_hub.snapshot_download`.
        **options: of `velm.load`: device, image_size, precision.

    Raises:
        CheckpointError: there is no such folder or repository, or it is not whole.
    """
    name = str(pretrained_model_name_or_path)
    if Path(name).expanduser().is_dir():
        if not is_folder(name):
            raise CheckpointError(f"{name} is a folder without the files of `velm export --format velm`.")
        return pipeline_of(read_folder(name), **options)
    folder = download(
        f"{HUB}{name.removeprefix(HUB)}", revision=revision, token=token, cache_dir=cache_dir,
        force_download=force_download, local_files_only=local_files_only,
    )  # fmt: skip
    return pipeline_of(read_folder(folder), **options)
