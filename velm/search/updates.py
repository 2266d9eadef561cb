"""Makes an index follow its source: new, changed, renamed, deleted and bad images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.nn import functional

from velm.errors import DataError, SearchError
from velm.pipeline import Pipeline, model_hash
from velm.search.reading import Reading, read_images
from velm.search.sources import Source, nothing
from velm.search.store import ABOUT, BAD, DELETED, OK, Row, create
from velm.search.writer import Place, Writer

__all__ = ["Updated", "update"]

PART = 8192
"""Rows that are held in memory before they are committed."""
SECONDS = 30.0
"""After which what was done is committed."""
PARTS, DEAD, DEAD_ROWS = 64, 0.25, 1000
"""More parts, or a larger share and number of deleted rows, are compacted."""


@dataclass
class Updated:
    """What an update did, as numbers of images; `bad` has the reason of each, by path."""

    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    unchanged: int = 0
    compacted: bool = False
    bad: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def update(
    pipeline: Pipeline,
    source: Source,
    folder: str | os.PathLike[str],
    *,
    checkpoint: str = "",
    image_size: int | None = None,
    batch_size: int = 32,
    verify: bool = False,
    compact: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Updated:
    """Write an index of the source, or make the one in `folder` follow it; goes on where an earlier call was stopped.

    A file is unchanged if its size and time are; otherwise its content is hashed, and only an unknown content is
    encoded. A row keeps its number until compaction, which follows by itself where many rows are deleted.

    Args:
        pipeline: the model.
        source: of `velm.search.sources.folder_source` or `records_source`.
        folder: of the index.
        checkpoint: its path or name, stored for `velm search`.
        image_size: the option that the pipeline was loaded with, stored likewise.
        batch_size: images per batch.
        verify: hash every file, also those of the same size and time.
        compact: write the index again without deleted rows.
        progress: called with (images done, images to read).

    Raises:
        SearchError: the index is of another model or another source, damaged, or being updated; or the source has no
            images any more.
        DataError: the source has no images.
        PipelineError: the model does not align.
    """
    pipeline.require_alignment()
    place = Path(folder).expanduser()
    if place.exists() and not place.is_dir():
        raise SearchError(f"{place} is a file: name a folder for the index.")
    if not (place / ABOUT).is_file() and not (source.stamps or source.bad):
        raise DataError(nothing(source))
    with _lock(place):
        model = model_hash(pipeline)
        about = {
            "model": model, "checkpoint": checkpoint, "image_size": image_size, "dim": pipeline.model.embed_dim,
            "root": source.root, "dataset": source.about, "exclude": list(source.exclude), "generation": 0,
        }  # fmt: skip
        if not (place / ABOUT).is_file():
            create(place, about)
        writer = Writer(place)
        _check(writer, source, model, pipeline)
        writer.about |= {**about, "generation": writer.about["generation"]}
        return _Update(pipeline, source, writer, verify).run(batch_size, compact, progress)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of an index's folder, which is made; SearchError if another process has it."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if not made and not (folder / ABOUT).is_file() and any(each.name != "update.lock" for each in folder.iterdir()):
        create(folder, {})  # raises
    lock = FileLock(folder / "update.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SearchError(f"Another process updates the index {folder}: wait until it has ended.") from error
    try:
        yield
    finally:
        lock.release()


def _check(writer: Writer, source: Source, model: str, pipeline: Pipeline) -> None:
    """Raise SearchError unless the index is of this model and this source."""
    about, folder = writer.about, writer.folder
    if about["model"] != model:
        raise SearchError(
            f"The index {folder} is of another model: of {about['checkpoint']} with the hash {about['model'][:12]}, "
            f"and this model has {model[:12]}. Update it with that checkpoint, or name another --output."
        )
    if (about["dataset"] is None) != (source.about is None) or about["dataset"] != source.about:
        raise SearchError(
            f"The index {folder} is of {about['dataset'] or about['root']}, not of {source.about or source.root}: name "
            f"another --output."
        )
    if about["root"] != source.root and os.path.isdir(about["root"]):
        raise SearchError(
            f"The index {folder} is of the folder {about['root']!r}, which is there, not of {source.root!r}: name "
            f"another --output. (A folder that was moved as a whole is recognised.)"
        )
    if not (source.stamps or source.bad) and any(row.status != DELETED for _, row in writer.places()):
        raise SearchError(
            f"{nothing(source)} The index {folder} has images of it: if a disk is not mounted, mount it; if they "
            f"are all deleted, delete the index."
        )


class _Update:
    """One run of an update.

    Attributes:
        live: the place of each path.
        known: a place with the vector of each hash.
        gone: the places whose file is gone, by hash; a new file with that hash was renamed.
    """

    def __init__(self, pipeline: Pipeline, source: Source, writer: Writer, verify: bool) -> None:
        self.pipeline, self.source, self.writer = pipeline, source, writer
        self.done = Updated(unreadable=source.unreadable)
        self.live: dict[str, Place] = {}
        self.known: dict[str, Place] = {}
        for place, row in writer.places():
            if row.status != DELETED:
                self.live[row.image_path] = place
            if row.status != BAD and row.hash:
                self.known[row.hash] = place
        self.paths = [path for path in source.stamps if verify or not self._unchanged(path)]
        self.done.unchanged = len(source.stamps) - len(self.paths)
        self.gone: dict[str, list[Place]] = {}
        for path in sorted(self.live):
            if path not in source.stamps and path not in source.bad and not self._unlisted(path):
                row = writer.row(self.live[path])
                self.gone.setdefault(row.hash, []).append(self.live[path])

    def run(self, batch_size: int, compact: bool, progress: Callable[[int, int], None] | None) -> Updated:
        for path, reason in self.source.bad.items():
            self._bad(Reading(path, reason=reason))
        batch: list[Reading] = []
        committed = time.monotonic()
        readings = read_images(
            self.source, sorted(self.paths), self.pipeline.transform, self.known, ahead=2 * batch_size
        )
        for number, reading in enumerate(readings, start=1):
            self._take(reading, batch)
            if len(batch) == batch_size:
                self._encode(batch)
                if len(self.writer.pending) >= PART or time.monotonic() - committed > SECONDS:
                    self.writer.commit()
                    committed = time.monotonic()
            if progress is not None:
                progress(number, len(self.paths))
        self._encode(batch)
        for places in self.gone.values():
            for place in places:
                self.done.deleted += self.writer.row(place).status == OK
                self.writer.delete(place)
        self.writer.commit()
        rows = [row for _, row in self.writer.places()]
        dead = sum(row.status == DELETED for row in rows)
        if compact or len(self.writer.vectors) > PARTS or dead > max(DEAD_ROWS, DEAD * len(rows)):
            self.writer.compact()
            self.done.compacted = True
        return self.done

    def _unchanged(self, path: str) -> bool:
        if path not in self.live:
            return False
        row = self.writer.row(self.live[path])
        return row.status == OK and row.mtime_ns != -1 and (row.size, row.mtime_ns) == self.source.stamps[path]

    def _unlisted(self, path: str) -> bool:
        """Whether it lies in a folder that could not be listed."""
        return any(not folder or path.startswith(f"{folder}/") for folder in self.source.unreadable)

    def _take(self, reading: Reading, batch: list[Reading]) -> None:
        """Store a reading whose vector is known or that is bad; put any other into the batch."""
        if reading.vanished:
            if reading.path in self.live:
                place = self.live[reading.path]
                self.gone.setdefault(self.writer.row(place).hash, []).append(place)
        elif reading.reason:
            self._bad(reading)
        elif reading.hash in self.known:
            self._adopt(reading)
        else:
            batch.append(reading)

    def _encode(self, batch: list[Reading]) -> None:
        """Store the embeddings of a batch, and empty it."""
        if not batch:
            return
        pixels = torch.stack([reading.pixels for reading in batch if reading.pixels is not None])
        encoded = self.pipeline.encode_pixels(pixels)
        vectors = functional.normalize(self.pipeline.embed_image(encoded).float(), dim=-1).half().numpy()
        for reading, vector in zip(batch, vectors, strict=True):
            if not np.isfinite(vector).all():
                self._bad(reading._replace(reason="its embedding is not finite"))
                continue
            self._forget(reading)
            place = self.writer.append(_row(reading), vector)
            self.live[reading.path] = self.known[reading.hash] = place
        batch.clear()

    def _adopt(self, reading: Reading) -> None:
        """Store a reading whose content is known: it was touched, renamed or copied."""
        old = self.live.get(reading.path)
        same = self.known[reading.hash]
        sized = reading._replace(width=self.writer.row(same).width, height=self.writer.row(same).height)
        if old is not None and self.writer.row(old).hash == reading.hash and self.writer.row(old).status == OK:
            self.writer.replace(old, _row(sized))
            self.done.unchanged += 1
            return
        moved = next((place for place in self.gone.get(reading.hash, ()) if self.writer.row(place).status == OK), None)
        if moved is None:
            self._forget(reading)
            self.live[reading.path] = self.writer.append(_row(sized), self.writer.vector(same))
            return
        self.gone[reading.hash].remove(moved)
        if old is not None:
            self.writer.delete(old)
        self.writer.replace(moved, _row(sized))
        self.live[reading.path] = moved
        self.done.renamed += 1

    def _bad(self, reading: Reading) -> None:
        """Keep a bad image apart: a row without a vector, with the reason."""
        self.done.bad[reading.path] = reading.reason
        row = _row(reading)._replace(status=BAD)
        old = self.live.get(reading.path)
        if old is not None and self.writer.row(old).status == BAD:
            self.writer.replace(old, row)
            return
        if old is not None:
            self.writer.delete(old)
        self.live[reading.path] = self.writer.append(row)

    def _forget(self, reading: Reading) -> None:
        """Delete the row of an earlier content, and count."""
        old = self.live.get(reading.path)
        if old is None:
            self.done.added += 1
            return
        self.done.changed += 1
        self.writer.delete(old)


def _row(reading: Reading) -> Row:
    return Row(
        reading.path, reading.size, reading.mtime_ns, reading.hash, OK, reading.reason, reading.width, reading.height
    )
