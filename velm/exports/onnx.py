"""To ONNX: a folder of graphs that `velm.onnx.load` and onnxruntime run without torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from velm import registry
from velm.checkpoint import Checkpoint
from velm.errors import ExportError, MissingPackageError
from velm.exports.onnx_decoders import StartGraph, StepGraph, TensorState, tensor_state
from velm.exports.onnx_towers import ImageTower, TextTower, tower_outputs
from velm.onnx.folder import TOKENIZER, TRANSFORM, DecoderConfig, OnnxConfig, seal_folder
from velm.pipeline import Pipeline
from velm.registry import split_config

__all__ = ["write_onnx"]

KIND = "velm.onnx"
BATCH, TEXT, PAST = 2, 5, 3  # sizes of the inputs that are traced: all of them may be others later
LARGE = 1_800_000_000  # bytes of weights from which they are files of their own: a graph ends at 2 GB
SCOPES = "pkg.torch.onnx.name_scopes"  # the modules that a node comes from
_LOGGERS = ("onnxscript", "onnx_ir", "torch.onnx")


@dataclass(frozen=True)
class _Graph:
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
    model = pipeline.model.requires_grad_(False)
    parts = {
        part: split_config(checkpoint.config[part])[0]
        for part in ("image_encoder", "text_encoder", "decoder")
        if getattr(model, part) is not None
    }
    towers = {name: tower_outputs(model, name, pipeline.aligned) for name in _towers(pipeline)}
    form = None if model.decoder is None else tensor_state(model.decoder)
    decoder = None
    with _quiet():
        features = {name: _write_tower(pipeline, name, outputs, folder, parts) for name, outputs in towers.items()}
        if form is not None:
            decoder = _write_decoder(pipeline, form, features, folder, parts["decoder"])
    OnnxConfig(
        parts=parts, outputs=towers, embed_dim=model.embed_dim, max_length=pipeline.max_length,
        aligned=pipeline.aligned, memory=list(model.memory_sources) if model.decoder is not None else [],
        decoder=decoder, logit_scale=pipeline.logit_scale, logit_bias=pipeline.logit_bias,
        tokenization=pipeline.tokenization, quantize=quantize,
    ).write(folder)  # fmt: skip
    for name, value in ((TOKENIZER, checkpoint.tokenizer), (TRANSFORM, pipeline.transform.config())):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
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
    limits = []
    decoder = pipeline.model.decoder
    if decoder is not None and tensor_state(decoder) is None:
        name = split_config(checkpoint.config["decoder"])[0]
        limits.append(
            f"the state of the decoder {name!r} ({type(decoder).__name__}) has no form as tensors (transformer, rnn "
            f"and hf/* have one)"
        )
    name = checkpoint.tokenizer["name"]
    if not registry.tokenizers.get(name).__module__.startswith("velm."):
        limits.append(
            f"the tokenizer {name!r} is a plugin, which may import torch: train with word, bpe, byte, clip or hf/*"
        )
    if limits:
        raise ExportError(f"This model cannot be exported to ONNX: {'; '.join(limits)}. --format velm takes it.")


def _towers(pipeline: Pipeline) -> list[str]:
    """The towers that are needed: both of an aligned model, and what the decoder reads."""
    model = pipeline.model
    read = model.memory_sources if model.decoder is not None else ()
    encoders = {"image": model.image_encoder, "text": model.text_encoder}
    return [name for name, each in encoders.items() if each is not None and (pipeline.aligned or name in read)]


def _write_tower(
    pipeline: Pipeline, name: str, outputs: list[str], folder: Path, parts: dict[str, str]
) -> Tensor | None:
    """Write image.onnx or text.onnx; returns features of the traced inputs, where the decoder reads them."""
    part = f"{name} encoder {parts[f'{name}_encoder']!r}"
    dynamic = Dim.DYNAMIC
    if name == "image":
        size = pipeline.transform.image_size
        images = torch.zeros(BATCH, 3, size, size, dtype=torch.uint8)
        graph = _Graph(part, ImageTower(pipeline.model, outputs), (images,), ({0: dynamic},), ["images"], outputs)
    else:
        tokens = torch.full((BATCH, TEXT), pipeline.tokenizer.bos_id)
        mask = torch.ones(BATCH, TEXT, dtype=torch.bool)
        mask[1, TEXT - 1] = False
        both = ({0: dynamic, 1: dynamic},) * 2
        module = TextTower(pipeline.model, outputs)
        graph = _Graph(part, module, (tokens, mask), both, ["tokens", "mask"], outputs)
    _write(graph, folder / f"{name}.onnx")
    if "features" not in outputs:
        return None
    width = pipeline.model._encoder("image" if name == "image" else "text").dim
    if name == "text":
        return torch.randn(BATCH, TEXT, width)
    with torch.no_grad():
        output = pipeline.model.encode_image(graph.inputs[0])
    if output.mask is not None:
        raise ExportError(f"The {part} masks positions of its features, which the ONNX graphs do not pass on.")
    return output.features.clone()


def _write_decoder(
    pipeline: Pipeline, form: TensorState, given: dict[str, Tensor | None], folder: Path, name: str
) -> DecoderConfig:
    """Write start.onnx and step.onnx."""
    model, dynamic, part = pipeline.model, Dim.DYNAMIC, f"decoder {name!r}"
    decoder = form.decoder
    features = [tensor for source in model.memory_sources if (tensor := given[source]) is not None]
    masked = "text" in model.memory_sources
    masks = [torch.ones(BATCH, TEXT, dtype=torch.bool)] if masked else []
    start = StartGraph(model, form)
    with torch.no_grad():
        whole, mask = start.memory(features, masks)
        memory, past = form.start(whole, mask)
    names = [f"memory_{number}" for number in range(len(memory))] + (["memory_mask"] if masked else [])
    pasts = [f"past_{number}" for number in range(len(past))]
    inputs = [f"{source}_features" for source in model.memory_sources] + (["text_mask"] if masked else [])
    lengths = [{0: dynamic} | ({1: dynamic} if source == "text" else {}) for source in model.memory_sources]
    shapes: tuple[Any, ...] = (lengths, [{0: dynamic, 1: dynamic}] if masked else [])
    _write(_Graph(part, start, (features, masks), shapes, inputs, names + pasts), folder / "start.onnx")
    grown = past if form.grows is None else [_longer(tensor, form.grows) for tensor in past]
    growing = {0: dynamic} if form.grows is None else {0: dynamic, form.grows: dynamic}
    varying = [{0: dynamic} | ({form.positions(i): dynamic} if masked else {}) for i in range(len(memory))]
    shapes = ({0: dynamic}, varying, [{0: dynamic, 1: dynamic}] if masked else [], [growing] * len(past))
    token = torch.full((BATCH,), pipeline.tokenizer.bos_id)
    step_inputs = (token, [each.clone() for each in memory], [] if mask is None else [mask.clone()], grown)
    outputs = ["logits", *(f"next_{each}" for each in pasts)]
    step = _Graph(part, StepGraph(decoder, form), step_inputs, shapes, ["token", *names, *pasts], outputs)
    _write(step, folder / "step.onnx")
    ids = pipeline.captioner.token_ids()
    start_id = ids["bos_id"] if form.start_id is None else form.start_id
    return DecoderConfig(
        names, pasts, int(start_id), int(ids["eos_id"]), sorted({int(i) for i in ids["suppress"]}), decoder.max_length
    )


def _longer(past: Tensor, axis: int) -> Tensor:
    """Some tokens for tensors of the past that hold none: sizes of 0 and 1 would be traced as constants."""
    shape = list(past.shape)
    shape[axis] = PAST
    return torch.randn(shape)


def _write(graph: _Graph, path: Path) -> None:
    """Export a graph.

    Raises:
        ExportError: the exporter cannot follow; the message names the part and the reason.
    """
    module = graph.module.eval()
    large = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values()) > LARGE
    try:
        # with gradients: caches are then concatenated and not written in place; no tensor requires one
        with torch.enable_grad():
            program = torch.onnx.export(
                module, graph.inputs, dynamo=True, input_names=graph.input_names, output_names=graph.output_names,
                dynamic_shapes=graph.shapes, verbose=False,
            )  # fmt: skip
        assert program is not None
        for node in program.model.graph:  # its notes hold paths of this computer
            for key in [key for key in node.metadata_props if key != SCOPES]:
                del node.metadata_props[key]
        program.save(path, external_data=large)
    except Exception as error:  # of torch.export, of the exporter or of the part itself
        raise ExportError(
            f"The {graph.part} cannot be exported to ONNX: {_reason(error)} --format velm takes it."
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')[:300]}."


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
