"""Write a dataset as tar shards: parallel, resumable by checksum, byte-for-byte reproducible."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from typing import Any

from velm.data.base import EncodedImage, Record, image_name, no_image_message
from velm.data.shards.urls import MANIFEST, read_manifest
from velm.errors import DataError
from velm.registry import datasets, load_plugins, split_config
from velm.util import Progress, sha256_of, write_atomically
from velm.version import __version__

__all__ = ["file_of", "pack", "write_shard"]

#: (first bytes, file extension) of image formats.
KINDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tif"),
         (b"MM\0*", "tif"))  # fmt: skip


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
    """Write `output/train-00000.tar` ... and a manifest; complete shards of an earlier run are skipped.

    Args:
        dataset: part config of the dataset.
        output: folder, created if missing; may hold an interrupted run of the same pack.
        splits: of the dataset; all must exist.
        shard_size: samples per shard.
        workers: processes; 1: this process only.
        plugins: modules or .py files whose decorators register the dataset.
        progress: called with (shards done, all shards).

    Returns:
        the manifest.

    Raises:
        DataError: the folder holds something else, or the data is invalid.
    """
    if shard_size < 1 or workers < 1:
        raise DataError(f"shard_size {shard_size} and workers {workers} must be at least 1.")
    load_plugins(plugins)
    name, options = split_config(dataset, "dataset")
    config = json.loads(json.dumps({"name": name, **options}))
    _open.cache_clear()
    manifest = _resumed(output, _plan(config, splits, shard_size))
    _write_manifest(output, manifest)
    shards = manifest["shards"]
    missing = [number for number, shard in enumerate(shards) if shard["sha256"] is None]
    for number, written in _written(config, output, [shards[i] for i in missing], shard_size, workers, plugins):
        shards[missing[number]].update(written)
        _write_manifest(output, manifest)
        if progress is not None:
            progress(sum(shard["sha256"] is not None for shard in shards), len(shards))
    return manifest


def _plan(config: dict[str, Any], splits: Sequence[str], shard_size: int) -> dict[str, Any]:
    """The manifest before any shard is written."""
    shards = []
    for split in splits:
        total = len(_open(json.dumps(config), split))
        for number, start in enumerate(range(0, total, shard_size)):
            samples = min(shard_size, total - start)
            name = f"{split}-{number:05d}.tar"
            written: dict[str, Any] = {"left_out": [], "bytes": None, "sha256": None}
            shards.append({"name": name, "split": split, "samples": samples, **written})
    return {"velm": __version__, "dataset": config, "shard_size": shard_size, "shards": shards}


def _resumed(output: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan, with the unchanged shards of an earlier run marked as written."""
    existing = read_manifest(output)
    if existing is None:
        if os.path.isdir(output) and os.listdir(output):
            raise DataError(f"{output!r} is not empty and holds no pack. Choose another folder, or empty it.")
        os.makedirs(output, exist_ok=True)
        return plan
    if (existing["dataset"], existing["shard_size"]) != (plan["dataset"], plan["shard_size"]):
        raise DataError(
            f"{output!r} holds a pack of another dataset or shard size: {json.dumps(existing['dataset'])} in shards of "
            f"{existing['shard_size']}; requested: {json.dumps(plan['dataset'])} in shards of {plan['shard_size']}. "
            f"Choose another folder, or empty it."
        )
    parts = [[(s["name"], s["samples"] + len(s["left_out"])) for s in each["shards"]] for each in (existing, plan)]
    if parts[0] != parts[1]:
        raise DataError(
            f"{output!r} holds a pack of other splits, or the data has changed since: {len(parts[0])} shards of "
            f"{sum(n for _, n in parts[0])} samples there, {len(parts[1])} of {sum(n for _, n in parts[1])} now. "
            f"Choose another folder, or empty it."
        )
    for name in os.listdir(output):
        if name.endswith(".part"):  # of an interrupted run
            os.remove(os.path.join(output, name))
    for shard in existing["shards"]:
        path = os.path.join(output, shard["name"])
        if not os.path.exists(path) or os.path.getsize(path) != shard["bytes"] or sha256_of(path) != shard["sha256"]:
            shard["bytes"] = shard["sha256"] = None
    return existing


def _written(
    config: dict[str, Any],
    output: str,
    shards: Sequence[dict[str, Any]],
    shard_size: int,
    workers: int,
    plugins: Sequence[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(shard number, result of `write_shard`) in the order of completion."""
    tasks = [
        (json.dumps(config), shard["split"], _number(shard["name"]) * shard_size,
         shard["samples"] + len(shard["left_out"]), os.path.join(output, shard["name"]), tuple(plugins))
        for shard in shards
    ]  # fmt: skip
    if min(workers, len(tasks)) <= 1:
        for number, task in enumerate(tasks):
            yield number, write_shard(*task)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks but not the threads that hold them
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=spawn)
    try:
        futures = {pool.submit(write_shard, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def write_shard(
    config: str, split: str, start: int, samples: int, path: str, plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """Write one shard atomically.

    Args:
        config: part config of the dataset, as JSON.
        split: of the dataset.
        start: index of the first record.
        samples: number of records.
        path: of the shard.
        plugins: modules or .py files whose decorators register the dataset.

    Returns:
        'samples' written, 'left_out': [{'path': ..., 'cause': ...}] for records without a valid image, 'bytes' and
        'sha256' of the file.
    """
    load_plugins(plugins)
    records = _open(config, split)
    left_out = []
    with write_atomically(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(start, start + samples):
            try:
                members = _members(f"{number:09d}", records[number])
            except DataError as error:  # a bad file does not stop the pack
                left_out.append({"path": image_name(records[number]), "cause": str(error)})
                continue
            for name, content in members.items():
                member = tarfile.TarInfo(name)  # no time, no owner: reproducible bytes
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {
        "samples": samples - len(left_out), "left_out": left_out,
        "bytes": os.path.getsize(path), "sha256": sha256_of(path),
    }  # fmt: skip


def _number(name: str) -> int:
    """12 of 'train-00012.tar'."""
    return int(name.rpartition("-")[2].removesuffix(".tar"))


@lru_cache(maxsize=8)
def _open(config: str, split: str) -> Sequence[Record]:
    """A split, opened once per process."""
    records: Sequence[Record] = datasets.build(json.loads(config)).split(split)
    return records


def _members(key: str, record: Record) -> dict[str, bytes]:
    content, ending = file_of(record)
    described: dict[str, Any] = {"image_id": record.image_id, "texts": list(record.texts)}
    if record.targets is not None:
        described["targets"] = list(record.targets)
    return {
        f"{key}.{ending}": content,
        f"{key}.json": json.dumps(described, ensure_ascii=False).encode(),
        f"{key}.txt": record.texts[0].encode(),
    }


def file_of(record: Record) -> tuple[bytes, str]:
    """The unchanged file of a record's image and its extension; arrays and PIL images are encoded as PNG.

    Raises:
        DataError: there is no image, or its format is unknown.
    """
    image = record.image
    if image is None:
        raise DataError(f"Record {record.image_id!r} has no image; shards consist of images and their captions.")
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


def _write_manifest(output: str, manifest: dict[str, Any]) -> None:
    path = os.path.join(output, MANIFEST)
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
