"""`--format torch`: programs of torch.export, which run by torch alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from velm.checkpoint import Checkpoint
from velm.errors import ExportError
from velm.exports.graphs import Graph, GraphFormat, decoder_limits, write_graphs
from velm.exports.padded_rnn import PaddedRNN
from velm.onnx.folder import seal_folder
from velm.pipeline import Pipeline

__all__ = ["write_torch"]

KIND = "programs of torch.export"


def write_torch(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write image.pt2, text.pt2, start.pt2 and step.pt2, as far as the model has them; returns what they are.

    Raises:
        ExportError: a part cannot be exported; the message names it and the reason.
    """
    if limits := decoder_limits(checkpoint, pipeline):
        raise ExportError(f"This model has no programs of torch.export: {'; '.join(limits)}. --format velm takes it.")
    form = GraphFormat(
        "torch", "a program of torch.export", ".pt2", _write, lambda encoder: PaddedRNN(encoder, pipeline.max_length)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        write_graphs(checkpoint, pipeline, folder, form)
    seal_folder(folder)
    return KIND


def _write(graph: Graph, path: Path) -> None:
    try:
        program = torch.export.export(graph.module, graph.inputs, dynamic_shapes=graph.shapes)
    except Exception:  # len(tensor) and the like make a batch size a number there, but not by TorchDynamo
        program = torch.export.export(graph.module, graph.inputs, dynamic_shapes=graph.shapes, strict=True)
    torch.export.save(program, path)
