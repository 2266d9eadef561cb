"""A bulk run: each process writes the parts of its share that are not finished yet."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from velm.allocation import keep_freed_memory
from velm.bulk.columns import Captions, Embeddings, Task
from velm.bulk.inputs import Input, Part, open_input
from velm.bulk.parts import Output
from velm.bulk.ranks import Share, launch, share_of_process
from velm.errors import ConfigError, VelmError
from velm.pipeline import load, model_hash

__all__ = ["Job", "Summary", "run"]

NAMED = 10
"""Maximal number of bad images that a process names on stderr."""
WHOLE = Share()


@dataclass(frozen=True)
class Job:
    """A bulk run as the command line describes it.

    Attributes:
        checkpoint: see `velm.load`.
        sources: see `velm.bulk.inputs.open_input`.
        output: folder.
        writes: 'captions' or 'embeddings'.
        options: of `velm.bulk.columns.Captions` or `Embeddings`.
        split: of the dataset.
        part_size: images per part.
        batch_size: images per batch.
        share: that --shard names.
        devices: processes to start on this machine.
        device, precision, image_size, plugins: as of `velm.load`.
        seed: of samples; that of a part is a function of it and the part's number.
        verify: read finished parts again and compare their checksums.
    """

    checkpoint: str
    sources: tuple[str, ...]
    output: Path
    writes: Literal["captions", "embeddings"]
    options: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    part_size: int = 5000
    batch_size: int = 32
    share: Share = WHOLE
    devices: int = 1
    device: str = "cpu"
    precision: Literal["32", "bf16"] = "32"
    image_size: int | None = None
    plugins: tuple[str, ...] = ()
    seed: int | None = None
    verify: bool = False


@dataclass
class Summary:
    """What a share holds when its run has ended: numbers of parts, images, bad images, and of the parts before it."""

    parts: int = 0
    finished_before: int = 0
    images: int = 0
    errors: int = 0


def run(job: Job) -> Summary:
    """Write the parts of the share of this process, or of `job.devices` processes.

    Raises:
        InputError: the checkpoint, an option, the input or the output folder cannot be used.
        RunFailedError: the disk is full, input or output have vanished, or a process was killed.
    """
    share = share_of_process(job.share)
    if job.devices == 1:
        return write_share(job, share)
    if share.count != job.share.count:
        raise ConfigError(
            f"--devices {job.devices}: {share.count // job.share.count} processes were started by a launcher, each has "
            f"one device. Leave --devices out, or start one process per machine."
        )
    _, output, input_ = prepare(replace(job, device="cpu"))  # messages once, before any process
    launch(partial(_write_rank, job), job.devices, job.device)
    return count_share(output, input_, share)


def _write_rank(job: Job, fabric: Any) -> None:
    """The work of a process that `launch` started; an error of VELM is printed, and ends it."""
    try:
        write_share(job, job.share.within(fabric.global_rank, fabric.world_size, fabric.local_rank))
    except VelmError as error:
        print(f"rank {fabric.global_rank}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def prepare(job: Job) -> tuple[Task, Output, Input]:
    """The model, the output folder with its manifest, and the input.

    Raises:
        InputError: one of them cannot be used.
    """
    if re.match(r"\w\w+:/", str(job.output)):  # Path makes one slash of two
        raise ConfigError(f"--output {job.output} is a URL; write to a folder, and copy its parts.")
    keep_freed_memory(job.device)
    pipeline = load(job.checkpoint, job.device, plugins=job.plugins, image_size=job.image_size, precision=job.precision)
    task: Task = Captions(pipeline, **job.options) if job.writes == "captions" else Embeddings(pipeline, **job.options)
    input_ = open_input(job.sources, split=job.split, part_size=job.part_size)
    manifest = {
        "writes": task.name,
        "model": model_hash(pipeline),
        "options": {**task.options, "precision": job.precision, "seed": job.seed},
        "input": input_.identity,
        "part_size": None if input_.identity["kind"] == "shards" else job.part_size,
        "parts": input_.parts,
    }
    return task, Output(job.output, manifest), input_


def write_share(job: Job, share: Share) -> Summary:
    """Write the parts of a share that are not finished; prints a line for each."""
    task, output, input_ = prepare(replace(job, device=share.device(job.device)))
    numbers = share.parts(input_.parts)
    output.remove_leftovers(numbers)
    summary, named = Summary(), 0
    for number in numbers:
        state = output.state(number, job.verify)
        summary.parts += 1
        if state.finished:
            summary.finished_before += 1
            summary.images, summary.errors = summary.images + state.rows, summary.errors + state.errors
            continue
        name = output.path(number).name
        if state.broken is not None:
            print(f"{name} is broken and is written again: {state.broken}", file=sys.stderr, flush=True)
        started = time.monotonic()
        part = input_.part(number)
        columns, errors = _compute(task, part, job, number)
        bad = [error for error in errors if error is not None]
        if bad:
            input_.check_presence()
        output.write(number, _table(number, part, columns, errors), len(bad))
        for error in bad[: NAMED - named]:
            print(error, file=sys.stderr)
        named += len(bad)
        summary.images, summary.errors = summary.images + len(part), summary.errors + len(bad)
        speed = len(part) / max(time.monotonic() - started, 1e-9)
        print(f"{name}  {len(part)} images, {len(bad)} bad, {speed:.0f} a second", flush=True)
    return summary


def count_share(output: Output, input_: Input, share: Share) -> Summary:
    """What the parts of a share hold, by their footers."""
    states = [output.state(number) for number in share.parts(input_.parts)]
    images, errors = sum(state.rows for state in states), sum(state.errors for state in states)
    return Summary(len(states), 0, images, errors)


def _compute(task: Task, part: Part, job: Job, number: int) -> tuple[dict[str, pa.Array], list[str | None]]:
    if job.seed is not None:
        import torch

        torch.manual_seed(job.seed * 1_000_003 + number)
    return task.columns(range(len(part)), job.batch_size, lambda row: task.pipeline.transform(part.image(row)))


def _table(number: int, part: Part, columns: dict[str, pa.Array], errors: Sequence[str | None]) -> pa.Table:
    return pa.table(
        {
            "part": pa.array([number] * len(part), pa.int32()),
            "row": pa.array(range(len(part)), pa.int32()),
            "id": pa.array([_utf8(name) for name in part.ids], pa.string()),
            **columns,
            "error": pa.array([None if error is None else _utf8(error) for error in errors], pa.string()),
        }
    )


def _utf8(text: str) -> str:
    """A file name that is not UTF-8 with replacement characters; any other text as it is."""
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
