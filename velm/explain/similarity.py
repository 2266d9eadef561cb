"""Similarity maps: the cosine of each position of an image with a text, in the joint space.

The projection into the joint space is trained on `pooled`, one vector per image, and applied here to `features`, one
vector per position. This is meaningful if pooling is a mean or a maximum over positions (`cnn`, and every encoder with
`pooling`), and hardly if `pooled` is a class token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from velm.errors import PipelineError
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline


@torch.inference_mode()
def similarity_maps(pipeline: Pipeline, image: EncoderOutput, texts: Sequence[str]) -> Tensor:
    """Cosines float (B, H', W') of the positions of B encoded images with one text each.

    Raises:
        PipelineError: the model does not align, its image encoder has no grid, or the numbers differ.
    """
    pipeline.require_alignment()
    if image.grid is None:
        raise PipelineError("The image encoder gives no grid, so its positions cannot be laid over the image.")
    if len(texts) != len(image.features):
        raise PipelineError(f"One text per image: got {len(image.features)} images and {len(texts)} texts.")
    positions = functional.normalize(pipeline.model.image_projection(image.features).float(), dim=-1)
    text_embeds = pipeline.embed_texts(list(texts)).to(positions)
    return torch.einsum("bne,be->bn", positions, text_embeds).unflatten(1, image.grid).cpu()
