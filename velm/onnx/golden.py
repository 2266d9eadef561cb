"""Golden inputs through a folder of ONNX in a process where torch cannot be imported: `python -m velm.onnx.golden`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from velm.onnx.pipeline import OnnxPipeline, load

__all__ = ["answers", "main"]


def answers(
    pipeline: OnnxPipeline, images: list[np.ndarray], texts: list[str], length: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What the model says of golden inputs, as `velm.exports.golden.golden_outputs`: tensors by name, and captions.

    Args:
        images: uint8 (H, W, 3).
        length: longest caption in tokens.
    """
    tensors: dict[str, np.ndarray] = {}
    captions: list[str] = []
    if pipeline.aligned:
        tensors |= {"image_embeds": pipeline.embed_images(images), "text_embeds": pipeline.embed_texts(texts)}
        if pipeline.logit_scale is not None:
            tensors["logits"] = pipeline.score(images, texts, kind="logit")
    if pipeline.writes:
        seen, read = (images if "image" in pipeline.reads else None), (texts if "text" in pipeline.reads else None)
        written = [each[0] for each in pipeline.caption_candidates(seen, read, max_length=length)]
        captions = [each.text for each in written]
        tensors["log_probs"] = np.array([[each.log_prob] for each in written], dtype=np.float32)
    if not tensors and "image" in pipeline.config.outputs:
        tensors["pooled"] = next(pipeline.encode_images(images, len(images)))["pooled"]
    return tensors, captions


def main(argv: Sequence[str]) -> None:
    """READER FOLDER GIVEN FOUND LENGTH: read the golden file GIVEN, see `velm.exports.golden`, and write FOUND."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    _, folder, given, found, length = argv
    with safe_open(given, framework="np") as file:
        inputs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        words = {name: json.loads(value) for name, value in file.metadata().items()}
    images = [inputs[f"image.{number}"] for number in range(sum(name.startswith("image.") for name in inputs))]
    tensors, captions = answers(load(Path(folder)), images, words["texts"], int(length))
    outputs = {f"output.{name}": np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    metadata = {"texts": json.dumps(words["texts"]), "captions": json.dumps(captions)}
    save_file({name: tensor for name, tensor in inputs.items() if name.startswith("image.")} | outputs, found, metadata)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails from here on
    main(sys.argv[1:])
