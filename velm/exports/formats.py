"""`velm.export`: a checkpoint in the form that another program reads, proved to say the same."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from velm.checkpoint import Checkpoint, merge, seal_folder, write_folder
from velm.checkpoint.folder import GOLDEN
from velm.errors import ConfigError, ExportError
from velm.exports.card import find_metrics, model_card
from velm.exports.change import Change, Sample, measure_change
from velm.exports.folders import new_folder
from velm.exports.fresh import in_fresh_process, metrics_in_fresh_process
from velm.exports.golden import (
    Difference,
    Golden,
    compare,
    golden_inputs,
    golden_maps,
    golden_outputs,
    squares,
    write_golden,
)
from velm.exports.readers import MODELS
from velm.pipeline import Pipeline
from velm.pipeline.loading import pipeline_of
from velm.registry import load_plugins
from velm.sources import open_source
from velm.util import did_you_mean

__all__ = ["FORMATS", "TOLERANCE", "Exported", "export"]

TOLERANCE = {"onnx": 1e-4}
"""Largest differences of an output by format; of the others it is 1e-5."""
QUANTIZED_COSINE = 0.99
"""Least cosine of an output with that of the checkpoint, for weights in int8."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: that holds it.
        kind: the class that reads it, such as 'CLIPModel'.
        differences: of golden outputs, between the checkpoint and what a fresh process says.
        changes: of recall@1 and CIDEr-D, where there was `data`.
    """

    folder: Path
    kind: str
    differences: list[Difference]
    changes: list[Change] = field(default_factory=list)


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    format: str = "velm",
    tolerance: float | None = None,
    quantize: str | None = None,
    metrics: str | Path | None = None,
    data: Sample | None = None,
    plugins: Sequence[str] = (),
) -> Exported:
    """Write a checkpoint for another program, and compare what that program says with the checkpoint.

    Args:
        checkpoint: what `velm.load` takes; adapters are merged, and of averaged weights the average is written.
        output: a folder that does not exist or is empty. It appears when everything is written and compared.
        format: a key of `FORMATS`.
        tolerance: largest difference of an output, see `velm.exports.golden.compare`. None: that of `TOLERANCE`; with
            `quantize`, the cosine of an output is at least `QUANTIZED_COSINE`, and captions may be others.
        quantize: 'int8', of `onnx`; None: float32.
        metrics: metrics.json of `velm evaluate` for the model card; None: that in the checkpoint's folder, if any.
        data: on which recall@1 and CIDEr-D of the checkpoint and of what was written are compared, too.
        plugins: as of `velm.load`.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConfigError: there is no such format.
        DataError: `data` cannot be read.
        ExportError: the format cannot express the model, the output cannot be written, or it says something else.
    """
    if format not in FORMATS:
        guess = did_you_mean(format, FORMATS)
        raise ConfigError(f"Unknown format {format!r}.{guess} Formats: {', '.join(FORMATS)}.")
    if data is not None and format not in MODELS:
        raise ConfigError(f"--data compares metrics of a whole model: --format {', '.join(MODELS)}; not {format}.")
    if quantize is not None and (quantize != "int8" or format != "onnx"):
        raise ConfigError(f"--quantize is int8, of --format onnx; got {quantize!r} of {format}.")
    load_plugins(plugins)
    content, output = merge(open_source(checkpoint)), Path(output).expanduser()
    pipeline = pipeline_of(content)
    golden = _OUTPUTS.get(format, golden_outputs)(pipeline, golden_inputs(pipeline.transform.image_size))
    results = find_metrics(Path(checkpoint)) if metrics is None else Path(metrics).expanduser()
    command = f"velm export {checkpoint} --format {format} --output {output}" + (" --data" if data else "")
    command += "" if quantize is None else f" --quantize {quantize}"
    options = {} if quantize is None else {"quantize": quantize}
    with new_folder(output) as folder:
        kind = FORMATS[format](content, pipeline, folder, golden, **options)
        found = in_fresh_process(format, folder, golden, plugins)
        if quantize is not None and tolerance is None:
            differences = _require_near(golden, found, kind)
        else:
            differences = _require_same(golden, found, kind, tolerance or TOLERANCE.get(format, 1e-5))
        changes = [] if data is None else _require_metrics(pipeline, checkpoint, data, (format, folder, plugins), kind)
        card = model_card(content, format, [*differences, *changes], results, command, output.name)
        readme = folder / "README.md"
        readme.write_text(card, encoding="utf-8")
        for file in filter(Path.is_file, folder.rglob("*")):
            shutil.copymode(readme, file)  # safetensors lets nobody else read its files
    return Exported(output, kind, differences, changes)


def _velm(checkpoint: Checkpoint, _pipeline: Pipeline, folder: Path, golden: Golden) -> str:
    write_folder(checkpoint, folder)
    write_golden(golden, folder / GOLDEN)
    seal_folder(folder)
    return "velm"


def _transformers(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path, _golden: Golden) -> str:
    from velm.exports.hf import write_transformers

    return write_transformers(checkpoint, pipeline, folder)


def _open_clip(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path, _golden: Golden) -> str:
    from velm.exports.open_clip import write_open_clip

    return write_open_clip(checkpoint, pipeline, folder)


def _backbone(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path, _golden: Golden) -> str:
    from velm.exports.backbone import export_backbone

    return export_backbone(checkpoint, pipeline, folder)


def _torch(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path, _golden: Golden) -> str:
    from velm.exports.torch_programs import write_torch

    return write_torch(checkpoint, pipeline, folder)


def _onnx(
    checkpoint: Checkpoint, pipeline: Pipeline, folder: Path, _golden: Golden, quantize: str | None = None
) -> str:
    from velm.exports.onnx import write_onnx

    return write_onnx(checkpoint, pipeline, folder, quantize)


FORMATS: dict[str, Callable[..., str]] = {
    "velm": _velm,
    "transformers": _transformers,
    "open_clip": _open_clip,
    "backbone": _backbone,
    "onnx": _onnx,
    "torch": _torch,
}
"""What writes a checkpoint into a folder and returns the class that reads it."""


def _of_squares(pipeline: Pipeline, golden: Golden) -> Golden:
    """The golden outputs of images of the model's own size: open_clip resizes by PIL, which rounds otherwise."""
    return golden_outputs(pipeline, squares(pipeline, golden))


_OUTPUTS: dict[str, Callable[[Pipeline, Golden], Golden]] = {"open_clip": _of_squares, "backbone": golden_maps}
"""What the checkpoint says of golden inputs, where a format asks otherwise than `golden_outputs`."""


def _require_same(golden: Golden, found: Golden, kind: str, tolerance: float) -> list[Difference]:
    """The differences.

    Raises:
        ExportError: one is too large, or a caption is another.
    """
    differences = compare(golden.tensors, found.tensors, tolerance)
    report = "; ".join(str(difference) for difference in differences if not difference.passed)
    if report:
        raise ExportError(f"{kind} does not say the same as the checkpoint, so nothing was written. {report}")
    for ours, theirs in zip(golden.captions, found.captions, strict=True):
        if ours != theirs:
            raise ExportError(
                f"{kind} writes another caption than the checkpoint, so nothing was written: {theirs!r} in place of "
                f"{ours!r}."
            )
    return differences


def _require_near(golden: Golden, found: Golden, kind: str) -> list[Difference]:
    """The differences of quantized weights, which are large where the direction is the same.

    Log probabilities are compared where the captions are equal: those of different captions say nothing.

    Raises:
        ExportError: a cosine is too small.
    """
    equal = [ours == theirs for ours, theirs in zip(golden.captions, found.captions, strict=True)]
    ours, theirs = dict(golden.tensors), dict(found.tensors)
    for tensors in (ours, theirs):
        if "log_probs" in tensors:
            tensors["log_probs"] = tensors["log_probs"][equal]
    if not any(equal):
        ours.pop("log_probs", None)
    differences = compare(ours, theirs, math.inf, least_cosine=QUANTIZED_COSINE)
    report = "; ".join(str(difference) for difference in differences if not difference.passed)
    if report:
        raise ExportError(f"{kind} is too far from the checkpoint, so nothing was written. {report}")
    return differences


def _require_metrics(
    pipeline: Pipeline, checkpoint: str | Path, data: Sample, written: tuple[str, Path, Sequence[str]], kind: str
) -> list[Change]:
    """The changes of metrics on data.

    Raises:
        ExportError: one falls too far.
    """
    reader, folder, plugins = written
    changes = measure_change(
        pipeline, str(checkpoint), data, lambda exercise: metrics_in_fresh_process(reader, folder, exercise, plugins)
    )
    if report := "; ".join(str(change) for change in changes if not change.passed):
        raise ExportError(
            f"{kind} is worse than the checkpoint on the data, so nothing was written. {report}: another --max_change "
            f"accepts it."
        )
    return changes
