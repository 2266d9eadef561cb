"""Processor time of a training step of a `vit` with and without patch dropout.

    python benchmarks/patch_dropout.py

One thread, 16 images of 224 x 224 pixels in patches of 16, the best of three steps. Takes half a minute.
"""

from __future__ import annotations

import time

import torch

from velm.encoders.vit import ViTEncoder

DROPPED = (0.0, 0.5, 0.75)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.rand(16, 3, 224, 224)
    encoders = {p: ViTEncoder(dim=384, depth=6, heads=6, patch_size=16, patch_dropout=p) for p in DROPPED}
    seconds = {p: min(step(encoder, images) for _ in range(3)) for p, encoder in encoders.items()}
    for probability, each in seconds.items():
        print(f"patch_dropout {probability:<4}  {each:.2f} s  {seconds[0.0] / each:.1f} times as fast")


def step(encoder: ViTEncoder, images: torch.Tensor) -> float:
    """Seconds of processor time of a forward and a backward pass."""
    started = time.process_time()
    encoder(images).pooled.sum().backward()
    return time.process_time() - started


if __name__ == "__main__":
    main()
