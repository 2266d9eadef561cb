"""Where in an image a sentence is found: cosines of each position with the sentence, in the joint space.

The projection into the joint space is trained on `pooled`, one vector for the whole image; here it is applied to
`features`, one vector a position. That means something where pooling is a mean or a maximum of the positions (as of
`cnn`, and wherever `pooling` is set), and little where `pooled` is a class token that positions never had to be like.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from velm.errors import PipelineError
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline

__all__ = ["similarity_maps"]


@torch.inference_mode()
def similarity_maps(pipeline: Pipeline, image: EncoderOutput, texts: Sequence[str]) -> Tensor:
    """Cosines float (B, H', W') of the positions of B images, as encoded, with a sentence each.

    Raises:
        PipelineError: the model does not align, its image encoder has no grid, or the numbers differ.
    """
    pipeline.require_alignment()
    if image.grid is None:
        raise PipelineError("The image encoder gives no grid, so its positions cannot be laid over the image.")
    if len(texts) != len(image.features):
        raise PipelineError(f"One text an image: got {len(image.features)} images and {len(texts)} texts.")
    positions = functional.normalize(pipeline.model.image_projection(image.features).float(), dim=-1)
    sentences = pipeline.embed_texts(list(texts)).to(positions)
    return torch.einsum("bne,be->bn", positions, sentences).unflatten(1, image.grid).cpu()
