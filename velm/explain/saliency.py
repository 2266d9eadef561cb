"""Saliency of pixels by integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365).

The gradient of the fit of image and text is integrated from a grey image to this one. The attributions of all pixels
sum to the difference in fit between the two (completeness), for any encoder, with or without a grid. Needs captum:
`pip install 'velm[explain]'`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from velm.errors import MissingPackageError, PipelineError
from velm.pipeline import Pipeline


def saliency_map(pipeline: Pipeline, image: Any, text: str, *, steps: int = 32) -> Tensor:
    """Signed contribution of each pixel to the fit of image and text, float (H, W), summed over colours.

    The fit is the cosine of the embeddings where the model aligns, else log P(text | image) in nats.

    Args:
        image: as in `Pipeline.caption`; H and W are those of the transformed image.
        steps: of the integral, >= 1; more bring the sum closer to the difference.

    Raises:
        MissingPackageError: captum is not installed.
        PipelineError: the model neither aligns nor captions from the image alone.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise MissingPackageError(f"Saliency needs captum ({error}): pip install 'velm[explain]'.") from error
    if steps < 1:
        raise PipelineError(f"steps {steps} is too small; it is at least 1.")
    fit = _Cosine(pipeline, text) if pipeline.aligned else _Likelihood(pipeline, text)
    model = pipeline.model
    # in the encoder's range, where the mean colour of its training images is 0
    pixels = pipeline.transform(image)[None].to(pipeline.device) * model.image_scale + model.image_shift
    with torch.enable_grad():
        attributions = IntegratedGradients(fit).attribute(
            pixels, baselines=torch.zeros_like(pixels), n_steps=steps, internal_batch_size=16
        )
    return attributions[0].sum(dim=0).detach().float().cpu()


class _Cosine:
    """Cosine of images (B, 3, H, W) with a text, float (B,)."""

    def __init__(self, pipeline: Pipeline, text: str) -> None:
        self.model = pipeline.model
        self.text_embeds = pipeline.embed_texts([text]).to(pipeline.device).clone()

    def __call__(self, pixels: Tensor) -> Tensor:
        embeds = self.model.embed_image(self.model.encode_image(pixels))
        return functional.cosine_similarity(embeds, self.text_embeds.to(embeds))


class _Likelihood:
    """log P(text | image), float (B,), of images (B, 3, H, W)."""

    def __init__(self, pipeline: Pipeline, text: str) -> None:
        pipeline.require_decoder()
        if pipeline.model.reads != ("image",):
            sources = ", ".join(pipeline.model.reads)
            raise PipelineError(f"Saliency asks how likely an image's text is; this decoder attends over [{sources}].")
        self.model = pipeline.model
        self.tokens, self.mask = pipeline.tokenize([pipeline.prompter.lead + text])
        self.prompt = pipeline.instruction(1)

    def __call__(self, pixels: Tensor) -> Tensor:
        assert self.model.decoder is not None
        prompt = None if self.prompt is None else self.prompt.map(lambda tensor: tensor.expand(len(pixels), -1))
        memory, mask = self.model.memory(self.model.encode_image(pixels), None, prompt)
        tokens, content = (each.expand(len(pixels), -1) for each in (self.tokens, self.mask))
        hidden = self.model.decoder.decode(tokens[:, :-1], memory, mask).hidden
        log_p = self.model.decoder.output_projection(hidden).log_softmax(dim=-1)
        return (log_p.gather(2, tokens[:, 1:, None])[..., 0] * content[:, 1:]).sum(dim=1)
