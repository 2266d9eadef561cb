"""A VELM model as guide: the gradient of image-text similarity steers diffusion, its scores choose the best of n."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import velm
from examples.guided_generation.diffusion import Network, denoise, signal_and_noise

__all__ = ["best_of", "guided", "similarity", "to_images", "to_pixels"]


def similarity(pipeline: velm.Pipeline, texts: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """A function of images in the making, float (B, 3, H, W) in [-1, 1], one per text, to their cosines, float (B,).

    `Pipeline.score` reads finished images and has no gradient; this goes through `pipeline.model` and has one.
    """
    model, size = pipeline.model, pipeline.transform.image_size
    text_embeds = pipeline.embed_texts(texts).clone()  # a clone of an inference tensor may enter autograd
    mean = torch.tensor(model.image_encoder.image_mean).view(3, 1, 1)
    std = torch.tensor(model.image_encoder.image_std).view(3, 1, 1)

    def cosines(images: Tensor) -> Tensor:
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        image_embeds = model.embed_image(model.encode_image(((images + 1) / 2 - mean) / std))
        return (image_embeds * text_embeds).sum(dim=1)

    return cosines


def guided(
    network: Network, similarity: Callable[[Tensor], Tensor], strength: float
) -> Callable[[Tensor, float], Tensor]:
    """`denoise` that moves the image it sees towards more similarity.

    The gradient goes through the network to the noisy pixels (universal guidance, Bansal et al. 2023,
    arXiv 2302.07121, equation 6), so it changes what the network would draw rather than single pixels. Its length says
    little about how far to go and differs by orders of magnitude between times, so it is normalised.

    Args:
        network: predicts images.
        similarity: of images with their texts, see `similarity`.
        strength: root mean square of the change of the image where all is noise; pixels are in [-1, 1]. It shrinks with
            the third power of the noise: large early, where only the layout is decided and nearly all of the change is
            denoised away again; small late, where it would leave patterns that please the guide alone.
    """

    def see(noisy: Tensor, time: float) -> Tensor:
        with torch.enable_grad():
            noisy = noisy.detach().requires_grad_()
            image = denoise(network, noisy, time)
            (gradient,) = torch.autograd.grad(similarity(image).sum(), noisy)
        length = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        sigma = signal_and_noise(time)[1]
        return (image.detach() + strength * sigma**3 * gradient / length).clamp(-1, 1)

    return see


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) as float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


def to_images(pixels: Tensor) -> list[np.ndarray]:
    """Float (B, 3, H, W) in [-1, 1] as uint8 arrays (H, W, 3), which a pipeline reads."""
    return list(((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


def best_of(pipeline: velm.Pipeline, candidates: Sequence[np.ndarray], text: str) -> np.ndarray:
    """The candidate, uint8 (H, W, 3), whose similarity with a text is highest."""
    return candidates[int(pipeline.score(candidates, [text]).argmax())]
