"""`--format transformers`: the class of transformers that says exactly what a model of VELM says."""

from __future__ import annotations

from pathlib import Path

from velm.checkpoint import Checkpoint
from velm.errors import ExportError
from velm.exports.hf_captioner import write_captioner
from velm.exports.hf_clip import write_clip, write_siglip
from velm.exports.hf_dual import write_dual
from velm.exports.hf_llava import write_llava
from velm.exports.requirements import options_of
from velm.pipeline import Pipeline

__all__ = ["write_transformers"]


def write_transformers(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write a model of transformers; the name of its class.

    Raises:
        ExportError: no class can express the model; the message names each reason.
    """
    parts = [part for part in ("image_encoder", "text_encoder", "decoder") if checkpoint.config.get(part)]
    if parts == ["image_encoder", "text_encoder"]:
        (_, image), (kind, text) = (options_of(checkpoint, part) for part in parts)
        if kind.startswith("hf/"):
            return write_dual(checkpoint, pipeline, folder)
        as_siglip = image.get("pooling") == "map" or text.get("pooling") == "end"
        return (write_siglip if as_siglip else write_clip)(checkpoint, pipeline, folder)
    if parts == ["image_encoder", "decoder"]:
        kind = options_of(checkpoint, "decoder")[0]
        if kind.startswith(("llm/", "hf/")):
            return (write_llava if kind.startswith("llm/") else write_captioner)(checkpoint, pipeline, folder)
        raise ExportError(
            f"The decoder is {kind!r}, and no class of transformers has it. VELM writes decoders llm/* "
            f"(LlavaForConditionalGeneration) and hf/* (VisionEncoderDecoderModel)."
        )
    raise ExportError(
        f"No class of transformers has the parts {', '.join(parts)}. VELM writes an image and a text encoder without a "
        f"decoder (CLIPModel, SiglipModel, VisionTextDualEncoderModel), and an image encoder with an llm/* or hf/* "
        f"(LlavaForConditionalGeneration, VisionEncoderDecoderModel)."
    )
