"""Batches of images decoded by threads, one batch ahead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["read_batches"]


def read_batches(
    images: Sequence[Any],
    transform: Callable[[Any], Any],
    batch_size: int,
    stack: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Stacked images uint8 (b, 3, H, W) in order; at most two batches are in memory.

    Codecs release the GIL, so threads are as fast as processes and start at once.

    Args:
        images: inputs of `transform`; an item is read when its batch is.
        transform: image to uint8 (3, H, W).
        batch_size: images per batch, at least 1; the last one may be smaller.
        stack: of what `transform` gives; None: that of torch.

    Raises:
        DataError: an image of the requested batch cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is too small; it is at least 1.")
    if stack is None:
        import torch  # here: velm.onnx does without

        stack = torch.stack
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    pending: list[list[Future[Any]]] = []
    try:
        for start in range(0, len(images), batch_size):
            chunk = [images[i] for i in range(start, min(start + batch_size, len(images)))]
            pending.append([pool.submit(transform, image) for image in chunk])
            if len(pending) > 1:
                yield stack([future.result() for future in pending.pop(0)])
        for futures in pending:
            yield stack([future.result() for future in futures])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
