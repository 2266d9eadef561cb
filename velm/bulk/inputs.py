"""The images of a bulk run: folders, tar shards or a dataset, divided into parts by position."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velm.data.base import EncodedImage, Record, text_only
from velm.data.images.names import find_images, image_suffixes, is_hidden
from velm.data.shards.tar import FileSlice, index_tar
from velm.data.shards.urls import MANIFEST, expand, local_path, read_manifest, short_names
from velm.errors import DataError, RunFailedError
from velm.registry import datasets, split_config
from velm.registry.locate import locate
from velm.registry.scalars import read_config

__all__ = ["Input", "Part", "open_input"]

SAMPLED = 1000
"""Records of a dataset whose ids identify it."""


@dataclass(frozen=True)
class Part:
    """A range of the input.

    Attributes:
        ids: of its images, in order.
        image: what the image at a position is: an input of a pipeline, or DataError.
    """

    ids: Sequence[str]
    image: Callable[[int], Any]

    def __len__(self) -> int:
        return len(self.ids)


class Input(ABC):
    """Images in a fixed number of parts.

    Attributes:
        identity: plain Python that is equal for the same input, on every machine.
        parts: their number.
    """

    identity: dict[str, Any]
    parts: int

    @abstractmethod
    def part(self, number: int) -> Part:
        """The part `number`, 0 <= number < parts."""

    @abstractmethod
    def check_presence(self) -> None:
        """Raise RunFailedError if the input itself has vanished, rather than some of its images."""


class Files(Input):
    """Image files.

    Args:
        names: their paths from `root`.
        root: a folder; '': the working folder.
        part_size: images per part.
    """

    def __init__(self, names: Sequence[str], root: str, part_size: int) -> None:
        self.names, self.root, self.part_size = names, root, part_size
        self.parts = -(-len(names) // part_size)
        self.identity = {"kind": "files", "images": len(names), "names": _digest(names)}

    def part(self, number: int) -> Part:
        names = self.names[number * self.part_size : (number + 1) * self.part_size]
        return Part(names, lambda row: os.path.join(self.root, names[row]))

    def check_presence(self) -> None:
        if self.root and not os.path.isdir(self.root):
            raise RunFailedError(_vanished(f"The folder {self.root!r}"))


class Shards(Input):
    """Tar shards, one part each; a row for each image in it, in order.

    Args:
        shards: paths or URLs.
        cache: see `velm.data.shards.urls.local_path`.
    """

    def __init__(self, shards: Sequence[str], cache: str | None = None) -> None:
        self.shards, self.names, self.cache = shards, short_names(shards), cache
        if len(shards) == 1:
            self.names = [os.path.basename(shards[0])]
        self.parts = len(shards)
        for shard in shards:
            if "://" not in shard and not os.path.isfile(shard):
                raise DataError(f"There is no shard {shard!r}.")
        sizes = [
            f"{name} {os.path.getsize(s) if '://' not in s else ''}" for name, s in zip(self.names, shards, strict=True)
        ]
        self.identity = {"kind": "shards", "shards": len(shards), "names": _digest(sizes)}

    def part(self, number: int) -> Part:
        """The images of a shard; one that is cut off or no tar has one more row, which is not an image."""
        name = self.names[number]
        try:
            path = local_path(self.shards[number], self.cache)
            index = index_tar(path)
        except DataError as error:
            return Part([name], _raise(error))
        members = index.names.to_pylist()
        images = [i for i, member in enumerate(members) if _is_image(member)]
        ids = [f"{name}/{members[i]}" for i in images]
        places = [(int(index.offsets[i]), int(index.sizes[i])) for i in images]

        def image(row: int) -> EncodedImage:
            if row == len(images):
                raise DataError(f"{self.shards[number]!r}: {index.broken}.")
            return EncodedImage(ids[row], FileSlice(path, *places[row]))

        return Part([*ids, name] if index.broken is not None else ids, image)

    def check_presence(self) -> None:
        folder = next((os.path.dirname(s) for s in self.shards if "://" not in s and not os.path.exists(s)), None)
        if folder is not None:
            raise RunFailedError(_vanished(f"A shard in {folder!r}"))


class Records(Input):
    """The records of a split.

    Args:
        records: see `velm.data.base.Dataset.split`.
        name: of dataset and split, plain Python.
        part_size: records per part.
    """

    def __init__(self, records: Sequence[Record], name: dict[str, Any], part_size: int) -> None:
        self.records, self.part_size = records, part_size
        self.parts = -(-len(records) // part_size)
        step = max(1, len(records) // SAMPLED)
        ids = (text_only(records, i).image_id for i in range(0, len(records), step))
        self.identity = {"kind": "dataset", **name, "images": len(records), "names": _digest(ids)}

    def part(self, number: int) -> Part:
        start = number * self.part_size
        rows = range(start, min(start + self.part_size, len(self.records)))
        return Part([text_only(self.records, i).image_id for i in rows], lambda row: self._image(start + row))

    def _image(self, index: int) -> Any:
        record = self.records[index]
        if record.image is None:
            raise DataError(f"Record {record.image_id!r} has no image.")
        return record.image

    def check_presence(self) -> None:
        paths = [self.records[i].image for i in (0, len(self.records) // 2, len(self.records) - 1)]
        folders = {os.path.dirname(path) or "." for path in paths if isinstance(path, str)}
        if folders and not any(map(os.path.isdir, folders)):
            raise RunFailedError(_vanished(f"The folder {min(folders)!r}"))


def open_input(sources: Sequence[str], *, split: str | None, part_size: int) -> Input:
    """The input that the command line names.

    Args:
        sources: folders and images; or tar shards, folders of them and packs; or the config of one dataset,
            '{name: csv, path: captions.csv}'.
        split: of the dataset, or of the packs (None: all their shards).
        part_size: images per part, where these are no shards.

    Raises:
        DataError, ConfigError: there are no such images; the message names the source.
    """
    if not sources:
        raise DataError("Nothing to read: give a folder, images, tar shards or the config of a dataset.")
    if any(source.lstrip().startswith("{") and ":" in source for source in sources):
        return _dataset(sources, split, part_size)
    shards = [shard for source in sources for shard in _shards(source, split)]
    others = [source for source in sources if not _shards(source, None)]
    if shards and others:
        raise DataError(f"Shards and images do not mix in one run: {shards[0]!r} is a shard, {others[0]!r} is not.")
    if shards:
        return Shards(shards)
    if split is not None:
        raise DataError(f"--split {split} is of a dataset or a pack; {sources[0]!r} is neither. Leave it out.")
    return _files(sources, part_size)


def _dataset(sources: Sequence[str], split: str | None, part_size: int) -> Records:
    if len(sources) > 1:
        raise DataError(f"A dataset stands alone; got {len(sources)} sources. Run once for each, into its own folder.")
    name, options = split_config(read_config(sources[0], "the dataset"), "dataset")
    if split is None:
        raise DataError(f"The dataset {name!r} has splits: say which one to read, e.g. --split test.")
    config = {"name": name, **options}
    dataset = datasets.build(locate(config, []))
    dataset.max_bad = 1.0  # bad samples are warned of here, and named in the rows where they have one
    return Records(dataset.split(split), {"dataset": json.loads(json.dumps(config)), "split": split}, part_size)


def _shards(source: str, split: str | None) -> list[str]:
    """The shards that a source stands for; none if it is a folder of images or an image."""
    if not os.path.isdir(source):
        return expand(source) if Path(source.partition("?")[0]).suffix == ".tar" else []
    if os.path.exists(os.path.join(source, MANIFEST)):
        manifest = read_manifest(source) or {"shards": []}
        splits = list(dict.fromkeys(shard["split"] for shard in manifest["shards"]))
        if split is not None and split not in splits:
            raise DataError(f"The pack {source!r} has no split {split!r}. It has: {', '.join(splits)}.")
        named = [shard["name"] for shard in manifest["shards"] if split in (None, shard["split"])]
    else:
        named = sorted(name for name in os.listdir(source) if name.endswith(".tar") and not is_hidden(name))
    return [os.path.join(source, name) for name in named]


def _files(sources: Sequence[str], part_size: int) -> Files:
    """Ids are paths from the folder if there is one only, so that machines may mount it in different places."""
    paths = find_images(sources)
    if len(sources) > 1 or not os.path.isdir(sources[0]):
        return Files(paths, "", part_size)
    return Files([os.path.relpath(path, sources[0]) for path in paths], sources[0], part_size)


def _is_image(member: str) -> bool:
    return os.path.splitext(member)[1].lower() in image_suffixes() and not is_hidden(member)


def _digest(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def _raise(error: DataError) -> Callable[[int], Any]:
    def image(row: int) -> Any:
        raise error

    return image


def _vanished(what: str) -> str:
    return (
        f"{what} has vanished during the run (a mount that went away?). The parts that are finished stay; bring it "
        f"back and run the same command again."
    )
