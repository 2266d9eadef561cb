"""Weights of exported graphs in 8 bits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["quantize_folder"]

PROJECTIONS = ("image_projection", "text_projection")
SMALLEST = 1024  # numbers of a weight from which storing it in int8 is worth a node
_STORED = {"Conv": (1, 0), "Gather": (0, 1)}
"""Which input of an operator is a weight, and the axis along which that has a scale for each place: a channel of a
convolution, an element of a word vector."""


def quantize_folder(folder: Path) -> None:
    """Quantize every graph of a folder in place.

    Products with a weight (MatMul, Gemm) are computed in int8: weights per output channel, activations in uint8 with a
    scale for each batch. Convolutions and word vectors are stored in int8 and computed in float32. The first layer over
    the pixels, the projections into the joint space, norms and recurrent cells stay as they are.
    """
    for path in sorted(folder.glob("*.onnx")):
        _quantize(path)


def _quantize(path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    first = _first_layer(model.graph) if path.stem == "image" else None
    kept = [node.name for node in model.graph.node if node.name == first or _projects(node)]
    kept += [f"{name}_MatMul" for name in kept]  # what quantize_dynamic calls the product of a Gemm
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises to run what the exporter has done
    try:
        quantize_dynamic(
            model, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_exclude=kept, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    finally:
        logging.root.setLevel(level)
    model = onnx.load(path)
    _store(model.graph, first)
    onnx.save(model, path)


def _first_layer(graph: Any) -> str | None:
    """The name of the first node with a weight, a convolution or the product of a patch embedding."""
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    found = (n.name for n in graph.node if n.op_type in ("Conv", "MatMul", "Gemm") and weights & set(n.input))
    return next(found, None)


def _projects(node: Any) -> bool:
    scopes = "".join(entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes"))
    return any(name in scopes for name in PROJECTIONS)


def _store(graph: Any, first: str | None) -> None:
    """Store large weights of `_STORED` operators in int8; onnxruntime makes float32 of them when it opens the graph."""
    from onnx import helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    for name, tensor in tensors.items():
        node = uses.get(name, [None])[0]
        if node is None or len(uses[name]) > 1 or node.op_type not in _STORED or node.name == first:
            continue
        place, axis = _STORED[node.op_type]
        weight = numpy_helper.to_array(tensor)
        if node.input[place] != name or weight.dtype != np.float32 or weight.size < SMALLEST:
            continue
        rest = tuple(a for a in range(weight.ndim) if a != axis)
        scale = np.maximum(np.abs(weight).max(axis=rest), 1e-12).astype(np.float32) / 127
        shape = [1] * weight.ndim
        shape[axis] = -1
        stored = np.rint(weight / scale.reshape(shape)).clip(-127, 127).astype(np.int8)
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [numpy_helper.from_array(stored, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
        )
        inputs = [f"{name}.int8", f"{name}.scale"]
        graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], f"{name}.dequantized", axis=axis))
