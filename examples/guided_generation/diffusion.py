"""Diffusion: noise is added to images step by step, and a network learns to take it away."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Network", "add_noise", "ddim", "denoise", "loss", "more_noise", "noise_in", "signal_and_noise"]

Network = Callable[[Tensor, Tensor], Tensor]
"""Noisy pixels float (B, 3, H, W) and times float (B,) to the image without noise, as the pixels."""

# of sigma / alpha at every time: large flat objects show through more noise than the details of photographs
SHIFT = 3.0
LEAST_SIGMA = 0.15  # below it the loss stops to grow: what is left to remove cannot be seen


def signal_and_noise(time: Tensor | float) -> tuple[Tensor, Tensor]:
    """alpha and sigma at a time, float (..., 1, 1, 1): 1 and 0 at time 0, 0 and 1 at time 1.

    The cosine schedule of Nichol & Dhariwal 2021 (arXiv 2102.09672), shifted to more noise as in Hoogeboom et al. 2023
    (arXiv 2301.11093).
    """
    angle = torch.as_tensor(time, dtype=torch.float32)[..., None, None, None] * math.pi / 2
    alpha, sigma = angle.cos(), SHIFT * angle.sin()
    length = torch.hypot(alpha, sigma)
    return alpha / length, sigma / length


def add_noise(images: Tensor, noise: Tensor, time: Tensor | float) -> Tensor:
    """x_t = alpha x_0 + sigma noise (Ho et al. 2020, arXiv 2006.11239, equation 4)."""
    alpha, sigma = signal_and_noise(time)
    return alpha * images + sigma * noise


def noise_in(noisy: Tensor, image: Tensor, time: float) -> Tensor:
    """The noise that makes `noisy` of `image`: `add_noise` solved for the noise."""
    alpha, sigma = signal_and_noise(time)
    return (noisy - alpha * image) / sigma


def loss(network: Network, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Squared error of v = alpha noise - sigma x_0 (Salimans & Ho 2022, arXiv 2202.00512), float ().

    The network predicts x_0, from which v follows: an image of flat colours has few degrees of freedom, and noise has
    all (Li & He 2025, arXiv 2511.13720). The error of v is that of x_0 over sigma.

    Args:
        network: predicts x_0.
        images: float (B, 3, H, W) in [-1, 1].
        generator: of times and noise.
    """
    count = len(images)
    time = (torch.arange(count) + torch.rand(count, generator=generator)) / count  # spread evenly: less variance
    noise = torch.randn(images.shape, generator=generator)
    predicted = network(add_noise(images, noise, time), time).float()
    return ((predicted - images) / signal_and_noise(time)[1].clamp(min=LEAST_SIGMA)).square().mean()


def denoise(network: Network, noisy: Tensor, time: float) -> Tensor:
    """The image that the network sees in noisy pixels of one time, as the pixels."""
    return network(noisy, torch.full((len(noisy),), time)).float()


@torch.no_grad()
def ddim(
    see: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    *,
    steps: int = 50,
    repeats: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images of noise: Song et al. 2020 (arXiv 2010.02502), equation 12 with its sigma = 0, so nothing else is random.

    Args:
        see: noisy pixels and their time to the image in them, e.g. `denoise` of a network.
        noise: float (B, 3, H, W), standard normal.
        steps: from noise to image.
        repeats: how often each step is made; between two, its noise is added again, so that a guide has more time
            to change what is seen (Lugmayr et al. 2022, arXiv 2201.09865; universal guidance, arXiv 2302.07121).
        generator: of the noise that is added again.

    Returns:
        float (B, 3, H, W) in [-1, 1].
    """
    x = noise
    for i in range(steps, 0, -1):
        time, earlier = i / steps, (i - 1) / steps
        for repeat in range(repeats):
            image = see(x, time)
            x = add_noise(image, noise_in(x, image, time), earlier)
            if repeat < repeats - 1:
                x = more_noise(x, earlier, time, torch.randn(x.shape, generator=generator))
    return x.clamp(-1, 1)


def more_noise(noisy: Tensor, earlier: float, time: float, noise: Tensor) -> Tensor:
    """Noisy pixels of one time as of a later one: `add_noise` in two parts is `add_noise` once."""
    (alpha, sigma), (alpha_0, sigma_0) = signal_and_noise(time), signal_and_noise(earlier)
    kept = alpha / alpha_0
    return kept * noisy + (sigma.square() - (kept * sigma_0).square()).sqrt() * noise
