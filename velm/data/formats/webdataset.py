"""Tar shards as webdataset and img2dataset write them, looked up like any other data: no streams, no buffers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from velm.data.bad_samples import check_bad_share, text_problem
from velm.data.base import Dataset
from velm.data.images.names import image_suffixes, is_hidden
from velm.data.shards.samples import Samples
from velm.data.shards.tar import TarIndex, index_tar
from velm.data.shards.urls import MANIFEST, expand, local_path, read_manifest, short_names
from velm.data.tables.records import TableRecords
from velm.errors import DataError, MissingSplitError

__all__ = ["WebDataset"]

NO_IMAGE, NO_TEXT = LACKING = ("it has no image", "it has no text")
DRAWINGS = (".svg", ".svgz")
TWICE = "*"  # stands among a sample's endings for one that comes twice
PACKED = {"json_text_key": "texts", "json_target_key": "targets", "json_image_id_key": "image_id"}


class WebDataset(Dataset):
    """Tar shards; members with the same name up to its first dot are one sample: `0012.jpg`, `0012.txt`, `0012.json`.

    Where that gives no image, the name up to the last dot is the sample's: `IMG.0001.jpg`, `IMG.0001.txt`. Hidden
    members (`._0012.jpg`, `.DS_Store`, `__MACOSX/`) belong to no sample.

    Args:
        path: a folder that `velm pack` wrote; its manifest says which shards make up which split, and the keys
            of its .json are known.
        train: shards of the split, in place of `path`: a file, a URL (s3://, https://, ...), or a list of them;
            brace ranges are written out: 'train-{0000..0003}.tar'.
        val: likewise.
        test: likewise.
        txt: what a .txt holds: 'one' sentence, a sentence on each of its 'lines', or 'none' that counts.
        json_text_key: key of the .json whose value is a sentence, or a list of them; those of the .txt that it
            lacks come after them. None leaves the .json alone.
        json_target_key: key of what to write for the sentences of `json_text_key`, one each; the .txt is then
            left alone.
        json_image_id_key: key of the image's id; None takes the shard's name and the member's.
        cache: folder that remote shards are fetched to, once; None takes the user's cache folder.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        txt: Literal["one", "lines", "none"] = "one",
        json_text_key: str | None = None,
        json_target_key: str | None = None,
        json_image_id_key: str | None = None,
        cache: str | None = None,
    ) -> None:
        given = {"train": train, "val": val, "test": test}
        shards = {split: expand(names) for split, names in given.items() if names is not None}
        if (path is None) == (not shards):
            raise ValueError("say which shards by path, a folder that velm pack wrote, or else by train, val, test.")
        if json_target_key is not None and json_text_key is None:
            raise ValueError("json_target_key needs json_text_key: there is a target for each of its sentences.")
        self.keys = {
            "json_text_key": json_text_key,
            "json_target_key": json_target_key,
            "json_image_id_key": json_image_id_key,
        }
        self.txt = "none" if json_target_key is not None else txt
        if path is not None:
            shards, self.keys, self.txt = _packed(path), dict(PACKED), "none"
        self.shards, self.cache = shards, cache
        self._wanted = set() if self.txt == "none" else {".txt"}
        self._wanted |= {".json"} if any(self.keys.values()) else set()
        self._forbid_overlap()

    def split(self, name: str) -> TableRecords:
        shards = self.shards.get(name)
        if not shards:
            listed = ", ".join(f"{split!r} ({len(names)} shards)" for split, names in self.shards.items())
            raise MissingSplitError(f"There are no shards for the split {name!r}. There are for: {listed}.")
        every = [shard for names in self.shards.values() for shard in names]
        short = dict(zip(every, short_names(every), strict=True))
        samples = Samples()
        for shard in shards:
            path = local_path(shard, self.cache)
            try:
                index = index_tar(path)
            except DataError as error:
                samples.truncate_shard(shard, str(error))
                continue
            self._read_shard(path, short[shard], index, samples)
            if index.broken is not None:
                samples.truncate_shard(shard, index.broken)
            samples.close(path)
        bad_samples = samples.all_bad_samples()
        if not len(samples) and all(bad_sample.cause in LACKING for bad_sample in bad_samples):
            raise DataError(self._nothing_whole(name, samples.endings))
        check_bad_share(bad_samples, len(samples), self.max_bad, f"split {name!r}")
        return samples.records()

    def _read_shard(self, path: str, short: str, index: TarIndex, samples: Samples) -> None:
        """Add the samples that have an image and a sentence; the others are noted."""
        members: list[str] = index.names.to_pylist()
        places = list(zip(index.offsets.tolist(), index.sizes.tolist(), strict=True))
        for member in filter(lambda name: not is_hidden(name), index.refused):
            samples.skip(f"{short}/{member}", "the member's name leads out of the shard; do not unpack it")
        with open(path, "rb") as file:
            for stem, kinds in _by_sample(members).items():
                contents: dict[str, bytes] = {}
                for kind in self._wanted & kinds.keys():
                    offset, size = places[kinds[kind]]
                    file.seek(offset)
                    contents[kind] = file.read(size)
                where = f"{short}/{stem}"
                image = kinds.get(_image_kind(kinds) or "")
                title = where if image is None else f"{short}/{members[image]}"
                try:
                    texts, targets, image_id = self._texts(where, contents.get(".txt"), contents.get(".json"))
                    _require(TWICE not in kinds, "two members of its shard have the same name")
                    _require(image is not None, NO_IMAGE)
                    _require(texts, NO_TEXT)
                    for bad_sample in map(text_problem, (*texts, *(targets or ()))):
                        _require(bad_sample is None, f"a sentence {bad_sample}")
                except DataError as error:
                    samples.skip(title, str(error), kinds)
                else:
                    samples.add(title, image_id or where, places[image or 0], texts, targets)

    def _texts(self, where: str, txt: bytes | None, metadata: bytes | None) -> tuple[list[str], list[str] | None, str]:
        """The sentences of a sample, their targets, its image's id ('' where none is named)."""
        texts: list[str] = []
        targets: list[str] | None = None
        image_id = ""
        if metadata is not None:
            row = _json(where, metadata)
            texts = _strings(where, self.keys["json_text_key"], row)
            if self.keys["json_target_key"] in row:
                targets = _strings(where, self.keys["json_target_key"], row)
                if len(targets) != len(texts):
                    raise DataError(f"{where}.json: {len(texts)} texts but {len(targets)} targets.")
            stated = row.get(self.keys["json_image_id_key"] or "")
            image_id = "" if stated is None else str(stated)
        if txt is not None:
            whole = _utf8(f"{where}.txt", txt)
            lines = whole.splitlines() if self.txt == "lines" else [whole]
            texts += [line.strip() for line in lines if line.strip() and line.strip() not in texts]
        return texts, targets, image_id

    def _nothing_whole(self, name: str, endings: set[str]) -> str:
        kinds = ", ".join(sorted(endings)) or "nothing, there are none"
        keys = f"json_text_key {self.keys['json_text_key']!r}, txt {self.txt!r}"
        return (
            f"No sample of split {name!r} has an image and a sentence. The members end in: {kinds}. Sentences are "
            f"looked for by {keys}: set json_text_key to a key of the .json, or txt to 'one' or 'lines'. "
            f"Members are one sample if their names are the same before the first dot."
        )

    def _forbid_overlap(self) -> None:
        owner: dict[str, str] = {}
        for split, shards in self.shards.items():
            for shard in shards:
                if shard in owner:
                    twice = f"twice in {split!r}" if owner[shard] == split else f"in {owner[shard]!r} and in {split!r}"
                    raise DataError(f"Shard {shard!r} is {twice}. Name each shard once, for one split.")
                owner[shard] = split


def _packed(folder: str) -> dict[str, list[str]]:
    """The shards of each split of a folder that `velm pack` wrote."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{folder!r} has no {MANIFEST}, as velm pack would have written. Other shards are named by split: "
            f"train: {folder}/train-{{0000..0003}}.tar"
        )
    missing = [shard["name"] for shard in manifest["shards"] if shard["sha256"] is None]
    if missing:
        raise DataError(
            f"The pack in {folder!r} is not finished: {len(missing)} of {len(manifest['shards'])} shards are missing, "
            f"the first is {missing[0]}. Run the same velm pack again; what is there is kept."
        )
    shards: dict[str, list[str]] = {}
    for shard in manifest["shards"]:
        shards.setdefault(shard["split"], []).append(os.path.join(folder, shard["name"]))
    return shards


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise DataError(otherwise)


def _by_sample(members: Sequence[str]) -> dict[str, dict[str, int]]:
    """Stem to the number of its member of each ending, lower-case, in the order of first appearance.

    Where two members of a sample have the same ending, `TWICE` is among its endings.
    """
    visible = {number: member for number, member in enumerate(members) if not is_hidden(member)}
    samples: dict[str, dict[str, int]] = {}
    for stem, kinds in _group(visible, _first_dot).items():
        dotted = {number: visible[number] for number in kinds.values()}
        by_last = {} if _image_kind(kinds) else _group(dotted, os.path.splitext)
        whole = any(_image_kind(each) and len(each) > 1 for each in by_last.values())
        samples |= by_last if whole else {stem: kinds}
    return samples


def _first_dot(member: str) -> tuple[str, str]:
    folder, slash, base = member.rpartition("/")
    stem, dot, ending = base.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}"


def _group(members: Mapping[int, str], split: Callable[[str], tuple[str, str]]) -> dict[str, dict[str, int]]:
    """As `_by_sample`, given a function from a name to (stem, ending); names without an ending are left out."""
    samples: dict[str, dict[str, int]] = {}
    for number, member in members.items():
        stem, ending = split(member)
        if ending:
            kinds = samples.setdefault(stem, {})
            if kinds.setdefault(ending.lower(), number) != number:
                kinds[TWICE] = number
    return samples


def _image_kind(kinds: Iterable[str]) -> str | None:
    """The ending of a sample's image, a drawing only if there is no other; None without one."""
    images = [kind for kind in kinds if kind in image_suffixes()]
    return min(images, key=DRAWINGS.__contains__, default=None)


def _json(where: str, content: bytes) -> dict[str, Any]:
    try:
        row = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where}.json is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}.json is not a JSON object, but a {type(row).__name__}.")
    return row


def _strings(where: str, key: str | None, row: dict[str, Any]) -> list[str]:
    """The sentences under a key: one, a list, or none; blank ones count for nothing."""
    value = row.get(key) if key is not None else None
    values = value if isinstance(value, list) else [] if value is None else [value]
    for each in values:
        if not isinstance(each, str):
            raise DataError(f"{where}.json: {key!r} holds {each!r}, which is no text.")
    return [each for each in values if each.strip()]


def _utf8(where: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {error}") from error
