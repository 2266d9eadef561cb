"""The graphs of a model: image tower, text tower, and the decoder's start and step with caches as tensors.

`--format onnx` and `--format torch` write them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from velm.checkpoint import Checkpoint
from velm.encoders.rnn import RNNEncoder
from velm.errors import ExportError
from velm.exports.decoder_states import StartGraph, StepGraph, TensorState, tensor_state
from velm.exports.towers import ImageTower, TextTower, tower_outputs
from velm.onnx.folder import TOKENIZER, TRANSFORM, DecoderConfig, OnnxConfig
from velm.pipeline import Pipeline
from velm.registry import split_config

__all__ = ["Graph", "GraphFormat", "decoder_limits", "write_graphs"]

BATCH, TEXT, PAST = 2, 5, 3  # sizes of the inputs that are traced: all of them may be others later


@dataclass(frozen=True)
class Graph:
    """A module, what it is called with, and the names of its inputs and outputs.

    Attributes:
        part: of the model, for messages.
        shapes: the axes of each input that may have another length, nested as `inputs`.
    """

    part: str
    module: nn.Module
    inputs: tuple[Any, ...]
    shapes: tuple[Any, ...]
    input_names: list[str]
    output_names: list[str]


@dataclass(frozen=True)
class GraphFormat:
    """How graphs are written.

    Attributes:
        name: of the format, 'onnx' or 'torch'.
        title: in messages.
        suffix: of the files.
        write: writes a graph, in eval mode, with gradients enabled, so that caches are concatenated and not written in
            place; no tensor requires one.
        rnn: a recurrent text encoder without `pack_padded_sequence`, which no exporter can follow.
    """

    name: str
    title: str
    suffix: str
    write: Callable[[Graph, Path], None]
    rnn: Callable[[RNNEncoder], nn.Module]


def write_graphs(
    checkpoint: Checkpoint, pipeline: Pipeline, folder: Path, form: GraphFormat, quantize: str | None = None
) -> None:
    """Write the graphs, config.json, tokenizer and transform.

    Raises:
        ExportError: a part cannot be exported; the message names it and the reason.
    """
    model = pipeline.model.requires_grad_(False)
    parts = {
        part: split_config(checkpoint.config[part])[0]
        for part in ("image_encoder", "text_encoder", "decoder")
        if getattr(model, part) is not None
    }
    towers = {name: tower_outputs(model, name, pipeline.aligned) for name in _towers(pipeline)}
    state = None if model.decoder is None else tensor_state(model.decoder)
    decoder = None
    features = {name: _write_tower(pipeline, name, outputs, folder, parts, form) for name, outputs in towers.items()}
    if state is not None:
        decoder = _write_decoder(pipeline, state, features, folder, parts["decoder"], form)
    OnnxConfig(
        parts=parts, outputs=towers, embed_dim=model.embed_dim, max_length=pipeline.max_length,
        aligned=pipeline.aligned, memory=list(model.memory_sources) if model.decoder is not None else [],
        decoder=decoder, logit_scale=pipeline.logit_scale, logit_bias=pipeline.logit_bias,
        tokenization=pipeline.tokenization, quantize=quantize,
    ).write(folder, form.name)  # fmt: skip
    for name, value in ((TOKENIZER, checkpoint.tokenizer), (TRANSFORM, pipeline.transform.config())):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def decoder_limits(checkpoint: Checkpoint, pipeline: Pipeline) -> list[str]:
    """Why the decoder has no graphs, in words."""
    decoder = pipeline.model.decoder
    if decoder is None or tensor_state(decoder) is not None:
        return []
    name = split_config(checkpoint.config["decoder"])[0]
    return [
        f"the state of the decoder {name!r} ({type(decoder).__name__}) has no form as tensors (transformer, rnn and "
        f"hf/* have one)"
    ]


def _towers(pipeline: Pipeline) -> list[str]:
    """The towers that are needed: both of an aligned model, and what the decoder reads."""
    model = pipeline.model
    read = model.memory_sources if model.decoder is not None else ()
    encoders = {"image": model.image_encoder, "text": model.text_encoder}
    return [name for name, each in encoders.items() if each is not None and (pipeline.aligned or name in read)]


def _write_tower(
    pipeline: Pipeline, name: str, outputs: list[str], folder: Path, parts: dict[str, str], form: GraphFormat
) -> Tensor | None:
    """Write the graph image or text; returns features of the traced inputs, where the decoder reads them."""
    part = f"{name} encoder {parts[f'{name}_encoder']!r}"
    dynamic = Dim.DYNAMIC
    if name == "image":
        size = pipeline.transform.image_size
        images = torch.zeros(BATCH, 3, size, size, dtype=torch.uint8)
        graph = Graph(part, ImageTower(pipeline.model, outputs), (images,), ({0: dynamic},), ["images"], outputs)
    else:
        tokens = torch.full((BATCH, TEXT), pipeline.tokenizer.bos_id)
        mask = torch.ones(BATCH, TEXT, dtype=torch.bool)
        mask[1, TEXT - 1] = False
        both = ({0: dynamic, 1: dynamic},) * 2
        module = TextTower(pipeline.model, outputs, form.rnn)
        graph = Graph(part, module, (tokens, mask), both, ["tokens", "mask"], outputs)
    _write(form, graph, folder / name)
    if "features" not in outputs:
        return None
    width = pipeline.model._encoder("image" if name == "image" else "text").dim
    if name == "text":
        return torch.randn(BATCH, TEXT, width)
    with torch.no_grad():
        output = pipeline.model.encode_image(graph.inputs[0])
    if output.mask is not None:
        raise ExportError(f"The {part} masks positions of its features, which the graphs do not pass on.")
    return output.features.clone()


def _write_decoder(
    pipeline: Pipeline,
    state: TensorState,
    given: dict[str, Tensor | None],
    folder: Path,
    name: str,
    form: GraphFormat,
) -> DecoderConfig:
    """Write the graphs start and step."""
    model, dynamic, part = pipeline.model, Dim.DYNAMIC, f"decoder {name!r}"
    decoder = state.decoder
    features = [tensor for source in model.memory_sources if (tensor := given[source]) is not None]
    masked = "text" in model.memory_sources
    masks = [torch.ones(BATCH, TEXT, dtype=torch.bool)] if masked else []
    start = StartGraph(model, state)
    with torch.no_grad():
        whole, mask = start.memory(features, masks)
        memory, past = state.start(whole, mask)
    names = [f"memory_{number}" for number in range(len(memory))] + (["memory_mask"] if masked else [])
    pasts = [f"past_{number}" for number in range(len(past))]
    inputs = [f"{source}_features" for source in model.memory_sources] + (["text_mask"] if masked else [])
    lengths = [{0: dynamic} | ({1: dynamic} if source == "text" else {}) for source in model.memory_sources]
    shapes: tuple[Any, ...] = (lengths, [{0: dynamic, 1: dynamic}] if masked else [])
    _write(form, Graph(part, start, (features, masks), shapes, inputs, names + pasts), folder / "start")
    # copies: views would be guarded as such
    grown = (
        [each.clone() for each in past] if state.grows is None else [_longer(tensor, state.grows) for tensor in past]
    )
    growing = {0: dynamic} if state.grows is None else {0: dynamic, state.grows: dynamic}
    varying = [{0: dynamic} | ({state.positions(i): dynamic} if masked else {}) for i in range(len(memory))]
    shapes = ({0: dynamic}, varying, [{0: dynamic, 1: dynamic}] if masked else [], [growing] * len(past))
    token = torch.full((BATCH,), pipeline.tokenizer.bos_id)
    step_inputs = (token, [each.clone() for each in memory], [] if mask is None else [mask.clone()], grown)
    outputs = ["logits", *(f"next_{each}" for each in pasts)]
    step = Graph(part, StepGraph(decoder, state), step_inputs, shapes, ["token", *names, *pasts], outputs)
    _write(form, step, folder / "step")
    ids = pipeline.captioner.token_ids()
    start_id = ids["bos_id"] if state.start_id is None else state.start_id
    return DecoderConfig(
        names, pasts, int(start_id), int(ids["eos_id"]), sorted({int(i) for i in ids["suppress"]}), decoder.max_length
    )


def _longer(past: Tensor, axis: int) -> Tensor:
    """Some tokens for tensors of the past that hold none: sizes of 0 and 1 would be traced as constants."""
    shape = list(past.shape)
    shape[axis] = PAST
    return torch.randn(shape)


def _write(form: GraphFormat, graph: Graph, path: Path) -> None:
    """Export a graph to `path` with the format's suffix.

    Raises:
        ExportError: the exporter cannot follow; the message names the part and the reason.
    """
    graph.module.eval()
    try:
        with torch.enable_grad():
            form.write(graph, path.with_name(f"{path.name}{form.suffix}"))
    except Exception as error:  # of torch.export, of the exporter or of the part itself
        raise ExportError(
            f"The {graph.part} cannot be exported to {form.title}: {_reason(error)} --format velm takes it."
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')[:300]}."
