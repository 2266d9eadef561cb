"""To ONNX: a folder of graphs that `velm.onnx.load` and onnxruntime run without torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from velm import registry
from velm.checkpoint import Checkpoint
from velm.errors import ExportError, MissingPackageError
from velm.exports.graphs import Graph, GraphFormat, decoder_limits, write_graphs
from velm.exports.onnx_rnn import RNNForm
from velm.onnx.folder import seal_folder
from velm.pipeline import Pipeline

__all__ = ["write_onnx"]

KIND = "velm.onnx"
LARGE = 1_800_000_000  # bytes of weights from which they are files of their own: a graph ends at 2 GB
SCOPES = "pkg.torch.onnx.name_scopes"  # the modules that a node comes from
_LOGGERS = ("onnxscript", "onnx_ir", "torch.onnx")


def write_onnx(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path, quantize: str | None = None) -> str:
    """Write the folder; returns what reads it.

    Args:
        quantize: 'int8': see `velm.exports.onnx_int8.quantize_folder`. None: float32.

    Raises:
        ExportError: a part cannot be exported; the message names it and the reason.
        MissingPackageError: onnx, onnxscript or onnxruntime is not installed.
    """
    _require_packages()
    _require_expressible(checkpoint, pipeline)
    form = GraphFormat("onnx", "ONNX", ".onnx", _write, RNNForm)
    with _quiet():
        write_graphs(checkpoint, pipeline, folder, form, quantize)
    if quantize is not None:
        from velm.exports.onnx_int8 import quantize_folder

        quantize_folder(folder)
    seal_folder(folder)
    return KIND if quantize is None else f"{KIND} ({quantize})"


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"--format onnx needs the package {error.name}: pip install 'velm[onnx]'.") from error


def _require_expressible(checkpoint: Checkpoint, pipeline: Pipeline) -> None:
    """Refuse what has no form as graphs, all reasons at once."""
    limits = decoder_limits(checkpoint, pipeline)
    name = checkpoint.tokenizer["name"]
    if not registry.tokenizers.get(name).__module__.startswith("velm."):
        limits.append(
            f"the tokenizer {name!r} is a plugin, which may import torch: train with word, bpe, byte, clip or hf/*"
        )
    if limits:
        raise ExportError(f"This model cannot be exported to ONNX: {'; '.join(limits)}. --format velm takes it.")


def _write(graph: Graph, path: Path) -> None:
    module = graph.module
    large = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values()) > LARGE
    program = torch.onnx.export(
        module, graph.inputs, dynamo=True, input_names=graph.input_names, output_names=graph.output_names,
        dynamic_shapes=graph.shapes, verbose=False,
    )  # fmt: skip
    assert program is not None
    for node in program.model.graph:  # its notes hold paths of this computer
        for key in [key for key in node.metadata_props if key != SCOPES]:
            del node.metadata_props[key]
    program.save(path, external_data=large)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own progress."""
    loggers: Sequence[logging.Logger] = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
