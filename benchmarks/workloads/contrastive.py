"""The alignment losses alone, forward and backward, on random L2-normalised embeddings of distinct images."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload

__all__ = ["WORKLOADS", "apart", "inputs", "ours", "peer"]

DIM = 512
SCALE, SIGMOID_SCALE, BIAS, MARGIN = 1 / 0.07, 10.0, -10.0, 0.2

Value = Callable[[Any, Any], Any]


def inputs(size: int, dim: int = DIM, device: str = "cpu") -> tuple[Any, Any]:
    """float (size, dim), embeddings of images and of captions."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(size, dim, generator=generator) for _ in range(2))
    image, text = (torch.nn.functional.normalize(each, dim=1).to(device).requires_grad_() for each in made)
    return image, text


def ours(name: str, group: Any = None) -> Value:
    """VELM's loss as a function of the embeddings of distinct images."""
    import torch
    from torch import distributed as dist

    from velm.losses import alignment
    from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput

    loss = {
        "contrastive": lambda: alignment.ContrastiveLoss(temperature=1 / SCALE),
        "sigmoid": lambda: alignment.SigmoidLoss(temperature=1 / SIGMOID_SCALE, bias=BIAS),
    }[name]()

    def value(image: Any, text: Any) -> Any:
        first = 0 if group is None else len(image) * dist.get_rank(group)
        ids = torch.arange(first, first + len(image), device=image.device)
        loss.to(image.device)
        batch = Batch(images=None, tokens=None, mask=None, image_ids=ids)
        return loss(VisionLanguageOutput(embeddings=JointEmbeddings(image, text)), batch, group)

    return value


def peer(name: str) -> Value:
    """The loss of open_clip."""
    import torch

    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        sys.exit("The peers are missing ('open_clip'): pip install '.[bench]', in VELM's folder.")
    # this file only: the package imports timm and torchvision, which use memory
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scale = SCALE if name == "contrastive" else SIGMOID_SCALE
    log_scale, bias = (torch.nn.Parameter(torch.tensor(each)) for each in (torch.tensor(scale).log().item(), BIAS))
    loss = module.ClipLoss() if name == "contrastive" else module.SigLipLoss()

    def value(image: Any, text: Any) -> Any:
        more = [log_scale.exp(), *([] if name == "contrastive" else [bias])]
        return loss(image, text, *(each.to(image.device) for each in more))

    return value


def apart(name: str, size: int = 4096, dim: int = DIM) -> dict[str, float]:
    """Largest difference of value and gradients between the two sides, relative to the largest number of each."""
    import torch

    image, text = inputs(size, dim)
    results = []
    for side in (ours(name), peer(name)):
        value = side(image, text)
        results.append((value.detach(), *torch.autograd.grad(value, (image, text))))
    found = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True)]
    return dict(zip(("value", "d_image", "d_text"), found, strict=True))


def prove(name: str, settings: Settings) -> list[Agreement]:
    found = apart(name)
    assert found["value"] < 1e-6, found
    assert max(found.values()) < 1e-4, found
    return [Agreement(f"{name}, {what}: relative difference", value, 0.0, "float32") for what, value in found.items()]


def system(make: Callable[[str], Value], name: str, size: int, settings: Settings) -> Run:
    loss = make(name)
    loss(*inputs(64, device=settings.device)).backward()  # libraries initialise themselves
    image, text = inputs(size, device=settings.device)

    def step() -> int:
        image.grad = text.grad = None
        loss(image, text).backward()
        return size

    return Run(step, warm=1, steps=3 if size < 10_000 else 1)


def workload(name: str, size: int) -> Workload:
    suffix = "" if (name, size) == ("contrastive", 8192) else f"_{size}" if name == "contrastive" else f"_{name}"
    return Workload(
        name=f"contrastive{suffix}",
        title=f"the {name} loss alone, forward and backward, {size:,} pairs of width {DIM}, float32",
        unit="pairs",
        systems={OURS: partial(system, ours, name, size), "open_clip": partial(system, peer, name, size)},
        against={"open_clip": OURS},
        prove=partial(prove, name),
        repeats=3,
    )


WORKLOADS = [
    *(workload("contrastive", size) for size in (8192, 4096, 16384)),
    workload("sigmoid", 8192),
]
