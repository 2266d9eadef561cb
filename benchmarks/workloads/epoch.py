"""An epoch on photographs from the command line, start to end: `velm fit` and open_clip's training script."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload, require
from benchmarks.inputs import CONTEXT, SIDE, VOCABULARY
from benchmarks.ours import DEPTH, WIDTH, clip_config
from benchmarks.peers.contrastive import towers
from benchmarks.photographs import data_folder, write_rows, write_tokenizer
from benchmarks.processes import run

__all__ = ["WORKLOADS", "Job", "fit_command", "open_clip_command"]

BATCH, LR, DECAY, CLIP, CROP = 32, 5e-4, 0.2, 1.0, 0.9
MODEL = "velm-384x12"
FEW = 5 * BATCH
"""Rows of a short run: VELM puts no image twice into a batch, and each image has five captions."""


@dataclass(frozen=True)
class Job:
    """Inputs of both sides.

    Attributes:
        folder: an empty folder, for the inputs and the output of a run.
        rows: number of captions, each used once.
        workers: number of processes that read images.
        settings: threads, precision, device.
    """

    folder: Path
    rows: int
    workers: int
    settings: Settings

    def write(self) -> list[tuple[str, str]]:
        """Write rows.csv, the tokenizer and the two configs."""
        written = write_rows(data_folder(), self.folder / "rows.csv", self.rows)
        (self.folder / "models").mkdir()
        (self.folder / "models" / f"{MODEL}.json").write_text(json.dumps(open_clip_config()), encoding="utf-8")
        (self.folder / "fit.yaml").write_text(json.dumps(fit_config(self)), encoding="utf-8")  # JSON is YAML
        write_tokenizer(self.folder / "tokenizer")
        return written


def fit_config(job: Job) -> dict[str, Any]:
    """The YAML of VELM."""
    whole = clip_config()
    model = {name: whole[name] for name in ("image_encoder", "text_encoder", "embed_dim", "losses")}
    optimizer = {"lr": LR, "weight_decay": DECAY}
    data = {
        "dataset": {"name": "csv", "path": "rows.csv", "allow_outside": True},
        "tokenizer": {"name": f"hf/{job.folder / 'tokenizer'}"},
        "image_size": SIDE, "augment": {"crop_scale": [CROP, 1.0]}, "batch_size": BATCH, "captions": "all",
        "max_length": CONTEXT, "num_workers": job.workers,
    }  # fmt: skip
    trainer = {
        "max_epochs": 1, "limit_val_batches": 0, "gradient_clip_val": CLIP, "log_every_n_steps": 10, "devices": 1,
        "precision": "bf16-mixed" if job.settings.precision == "bf16" else "32-true",
        "accelerator": "gpu" if job.settings.device == "cuda" else "cpu",
    }  # fmt: skip
    return {"seed_everything": 0, "model": {**model, "optimizer": optimizer}, "data": data, "trainer": trainer}


def open_clip_config() -> dict[str, Any]:
    """The JSON of open_clip."""
    vision, text = towers(WIDTH, DEPTH, VOCABULARY)
    return {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}


def fit_command(job: Job, witness: str | None = None) -> list[str]:
    """`velm fit`; a witness adds a callback."""
    seen = [f"--trainer.callbacks+={json.dumps(_witness(job, witness))}"] if witness else []
    return ["-m", "velm.cli", "fit", "--config", "fit.yaml", *seen]


def open_clip_command(job: Job, witness: str | None = None) -> list[str]:
    """The script of open_clip, with the crop, clipping, schedule and logging of `fit_config`."""
    steps = job.rows // BATCH
    options = {
        "model": MODEL, "train-data": "rows.csv", "dataset-type": "csv", "csv-separator": ",",
        "csv-img-key": "image_path", "csv-caption-key": "text", "batch-size": BATCH, "epochs": 1, "lr": LR,
        "wd": DECAY, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "warmup": steps // 20, "workers": job.workers,
        "precision": "amp_bf16" if job.settings.precision == "bf16" else "fp32", "device": job.settings.device,
        "grad-clip-norm": CLIP, "log-every-n-steps": 10, "logs": "logs", "name": "run",
    }  # fmt: skip
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ["-m", "benchmarks.peers.open_clip_epoch", "models", witness or "-", *given]


def _witness(job: Job, path: str) -> dict[str, Any]:
    given = {"path": str(job.folder / path), "sentences": True}
    return {"class_path": "benchmarks.witness.Witness", "init_args": given}


def fitted(job: Job) -> int:
    """Number of samples of a finished run of VELM, from the step count of its checkpoint."""
    import torch

    saved = torch.load(job.folder / "runs" / "fit" / "last.ckpt", map_location="cpu", mmap=True, weights_only=False)
    return int(saved["global_step"]) * BATCH


def logged(job: Job) -> int:
    """Number of samples of a finished run of open_clip, from its log."""
    log = (job.folder / "logs" / "run" / "out.log").read_text(encoding="utf-8")
    return int(re.findall(r"Train Epoch: 0 \[\s*(\d+)/", log)[-1])


def epoch(command: Callable[[Job], list[str]], trained: Callable[[Job], int]) -> Callable[[Settings], Run]:
    """The first run is short and not counted; the files are in memory afterwards."""

    def system(settings: Settings) -> Run:
        _require_data()
        rows, peaks = [FEW, _number("VELM_EPOCH_ROWS", 2048) // BATCH * BATCH], []

        def step() -> int:
            with _job(rows.pop(0) if len(rows) > 1 else rows[0], settings) as job:
                finished = run(command(job), folder=job.folder, threads=settings.threads, tree=True)
                samples = trained(job)
                assert samples == job.rows, f"{samples} samples of {job.rows} were trained on."
            peaks.append(finished.peak_mb)
            return samples

        return Run(step, warm=1, steps=1, extra_mb=lambda: peaks[-1])

    return system


def prove(settings: Settings) -> list[Agreement]:
    """A short run of each side: weights, steps, and that each caption occurs once, with the same tokens."""
    _require_data()
    found = []
    for command in (fit_command, open_clip_command):
        with _job(FEW, settings) as job:
            run(command(job, "witness.json"), folder=job.folder, threads=settings.threads)
            found.append(json.loads((job.folder / "witness.json").read_text(encoding="utf-8")))
    ours, theirs = found
    lines = [
        Agreement("parameters", ours["parameters"], theirs["parameters"], "theirs: position of the class token, scale"),
        Agreement("steps", ours["steps"], theirs["steps"], "of five batches, in the proof"),
        Agreement("samples", ours["samples"], theirs["samples"], "each caption once"),
        Agreement("tokens of all captions", *(sum(map(len, side["sentences"])) for side in found), "padding left out"),
    ]
    assert theirs["parameters"] - ours["parameters"] == WIDTH + 1, lines
    assert all(line.ours == line.theirs for line in lines[1:]), lines
    assert sorted(ours["sentences"]) == sorted(theirs["sentences"]), "the tokens of the two sides differ"
    return [*lines, Agreement("token ids, sorted", "equal", "equal")]


@contextmanager
def _job(rows: int, settings: Settings) -> Iterator[Job]:
    """A job in a temporary folder, with its files written."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), rows, _number("VELM_EPOCH_WORKERS", 1), settings)
        job.write()
        yield job


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))


def _require_data() -> None:
    require("open_clip_train")
    try:
        data_folder()
    except FileNotFoundError as error:
        sys.exit(str(error))


WORKLOADS = [
    Workload(
        name="epoch",
        title="An epoch of Flickr8k from the command line, CLIP 384 x 12 at 224 px, B = 32: loader to checkpoint",
        unit="samples",
        systems={OURS: epoch(fit_command, fitted), "open_clip": epoch(open_clip_command, logged)},
        against={"open_clip": OURS},
        prove=prove,
        repeats=2,
        profiled=None,
        notes=(
            "Seconds are of the whole process, start-up and last checkpoint included: the same 2,048 rows of one CSV "
            "($VELM_EPOCH_ROWS), random crops, AdamW, clipping, one loader process ($VELM_EPOCH_WORKERS).",
            "Memory is the most that the process and its loaders take together.",
        ),
    )
]
