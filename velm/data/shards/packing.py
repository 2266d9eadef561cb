"""A dataset written as tar shards: in parallel, by checksum resumable, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from typing import Any

from velm.data.base import EncodedImage, Record, image_name, no_image_message
from velm.data.shards.urls import MANIFEST, read_manifest
from velm.errors import DataError
from velm.registry import datasets, load_plugins, split_config
from velm.version import __version__

__all__ = ["file_of", "pack", "write_shard"]

#: How the files of each kind begin, and what their names end in.
KINDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tif"),
         (b"MM\0*", "tif"))  # fmt: skip
Progress = Callable[[int, int], None]


def pack(
    dataset: Mapping[str, Any],
    output: str,
    *,
    splits: Sequence[str] = ("train", "val", "test"),
    shard_size: int = 1000,
    workers: int = 1,
    plugins: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `output/train-00000.tar` and so on, and a manifest; shards that are whole already are kept.

    Args:
        dataset: its spec.
        output: folder; it is made, or holds an earlier run of the same pack.
        splits: which of the dataset's, all of which there must be.
        shard_size: samples in a shard.
        workers: processes; 1 does without another.
        plugins: modules or .py files whose decorators register the dataset.
        progress: told how many shards are done, and of how many.

    Returns:
        the manifest.

    Raises:
        DataError: the folder holds something else, or the data is not what it should be.
    """
    if shard_size < 1 or workers < 1:
        raise DataError(f"shard_size {shard_size} and workers {workers} must be at least 1.")
    load_plugins(plugins)
    name, options = split_config(dataset, "dataset")
    spec = json.loads(json.dumps({"name": name, **options}))
    _open.cache_clear()
    manifest = _resumed(output, _plan(spec, splits, shard_size))
    _write_manifest(output, manifest)
    shards = manifest["shards"]
    missing = [number for number, shard in enumerate(shards) if shard["sha256"] is None]
    for number, written in _written(spec, output, [shards[i] for i in missing], shard_size, workers, plugins):
        shards[missing[number]].update(written)
        _write_manifest(output, manifest)
        if progress is not None:
            progress(sum(shard["sha256"] is not None for shard in shards), len(shards))
    return manifest


def _plan(spec: dict[str, Any], splits: Sequence[str], shard_size: int) -> dict[str, Any]:
    """The manifest before anything is written."""
    shards = []
    for split in splits:
        total = len(_open(json.dumps(spec), split))
        for number, start in enumerate(range(0, total, shard_size)):
            samples = min(shard_size, total - start)
            name = f"{split}-{number:05d}.tar"
            written: dict[str, Any] = {"left_out": [], "bytes": None, "sha256": None}
            shards.append({"name": name, "split": split, "samples": samples, **written})
    return {"velm": __version__, "dataset": spec, "shard_size": shard_size, "shards": shards}


def _resumed(output: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan, with what an earlier run of it has written and what still is as it was written."""
    found = read_manifest(output)
    if found is None:
        if os.path.isdir(output) and os.listdir(output):
            raise DataError(f"{output!r} is not empty and holds no pack. Choose another folder, or empty it.")
        os.makedirs(output, exist_ok=True)
        return plan
    if (found["dataset"], found["shard_size"]) != (plan["dataset"], plan["shard_size"]):
        raise DataError(
            f"{output!r} holds a pack of something else: {json.dumps(found['dataset'])} in shards of "
            f"{found['shard_size']}; asked for is {json.dumps(plan['dataset'])} in shards of {plan['shard_size']}. "
            f"Choose another folder, or empty it."
        )
    parts = [[(s["name"], s["samples"] + len(s["left_out"])) for s in each["shards"]] for each in (found, plan)]
    if parts[0] != parts[1]:
        raise DataError(
            f"{output!r} holds a pack of other splits, or the data has changed since: {len(parts[0])} shards of "
            f"{sum(n for _, n in parts[0])} samples there, {len(parts[1])} of {sum(n for _, n in parts[1])} now. "
            f"Choose another folder, or empty it."
        )
    for shard in found["shards"]:
        path = os.path.join(output, shard["name"])
        if not os.path.exists(path) or os.path.getsize(path) != shard["bytes"] or _sha256(path) != shard["sha256"]:
            shard["bytes"] = shard["sha256"] = None
    return found


def _written(
    spec: dict[str, Any],
    output: str,
    shards: Sequence[dict[str, Any]],
    shard_size: int,
    workers: int,
    plugins: Sequence[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each shard as it is done, and what `write_shard` tells of it."""
    tasks = [
        (json.dumps(spec), shard["split"], _number(shard["name"]) * shard_size,
         shard["samples"] + len(shard["left_out"]), os.path.join(output, shard["name"]), tuple(plugins))
        for shard in shards
    ]  # fmt: skip
    if min(workers, len(tasks)) <= 1:
        for number, task in enumerate(tasks):
            yield number, write_shard(*task)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would take this process's threads for granted
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=spawn)
    try:
        futures = {pool.submit(write_shard, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def write_shard(
    spec: str, split: str, start: int, samples: int, path: str, plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a shard under another name and rename it when it is whole.

    Args:
        spec: of the dataset, as JSON.
        split: of the dataset.
        start: number of the first record.
        samples: how many records.
        path: of the shard.
        plugins: modules or .py files whose decorators register the dataset.

    Returns:
        'samples' that are in it, 'left_out': [{'path': ..., 'cause': ...}] without an image that is one, 'bytes' and
        'sha256' of it.
    """
    load_plugins(plugins)
    records = _open(spec, split)
    partial = f"{path}.part"
    left_out = []
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(start, start + samples):
            try:
                members = _members(f"{number:09d}", records[number])
            except DataError as error:  # one bad file is no reason to have no shards
                left_out.append({"path": image_name(records[number]), "cause": str(error)})
                continue
            for name, content in members.items():
                member = tarfile.TarInfo(name)  # no time, no owner: the same data gives the same bytes
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    told = {"samples": samples - len(left_out), "left_out": left_out}
    written = {**told, "bytes": os.path.getsize(partial), "sha256": _sha256(partial)}
    os.replace(partial, path)
    return written


def _number(name: str) -> int:
    """12 of 'train-00012.tar'."""
    return int(name.rpartition("-")[2].removesuffix(".tar"))


@lru_cache(maxsize=8)
def _open(spec: str, split: str) -> Sequence[Record]:
    """A split, opened once in each process."""
    records: Sequence[Record] = datasets.build(json.loads(spec)).split(split)
    return records


def _members(key: str, record: Record) -> dict[str, bytes]:
    content, ending = file_of(record)
    told: dict[str, Any] = {"image_id": record.image_id, "texts": list(record.texts)}
    if record.targets is not None:
        told["targets"] = list(record.targets)
    return {
        f"{key}.{ending}": content,
        f"{key}.json": json.dumps(told, ensure_ascii=False).encode(),
        f"{key}.txt": record.texts[0].encode(),
    }


def file_of(record: Record) -> tuple[bytes, str]:
    """The file of a record's image as it is, and what its name should end in; pixels become a PNG.

    Raises:
        DataError: there is no image, or it is of no kind that is known.
    """
    image = record.image
    if image is None:
        raise DataError(f"Record {record.image_id!r} has no image; shards are made of images and their sentences.")
    if isinstance(image, str | os.PathLike | EncodedImage):
        content = image.load() if isinstance(image, EncodedImage) else _content(image)
        ending = "webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None
        ending = ending or next((ending for start, ending in KINDS if content.startswith(start)), None)
        if ending is None:
            title = image.name if isinstance(image, EncodedImage) else os.fspath(image)
            raise DataError(f"{title!r} is no image: it begins with {content[:8]!r}, as none of the known kinds does.")
        return content, ending
    from velm.data.images.transforms import read_image

    target = io.BytesIO()
    read_image(image).save(target, "PNG")
    return target.getvalue(), "png"


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise DataError(no_image_message(os.fspath(path))) from error


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_manifest(output: str, manifest: dict[str, Any]) -> None:
    path = os.path.join(output, MANIFEST)
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
        file.write("\n")
    os.replace(f"{path}.part", path)
