"""Compiled towers give what they gave, keep the names of their weights, and do not compile anew for every length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from velm.decoders.base import Decoder
from velm.encoders.base import TextEncoder
from velm.registry import decoders, image_encoders, text_encoders
from velm.training.memory.compile import compile_tower

SIZES: dict[str, Any] = {"name": "transformer", "dim": 16, "depth": 2, "heads": 2}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def towers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "image": image_encoders.build({"name": "vit", "dim": 16, "depth": 2, "heads": 2, "patch_size": 8}),
        "text": text_encoders.build(SIZES, vocab_size=20, pad_id=0),
        "decoder": decoders.build(SIZES, vocab_size=20, pad_id=0, memory_dim=16),
    }


def run(name: str, tower: Any, length: int, size: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(3, 20, (size, length), generator=generator)
    if name == "image":
        return tower(torch.rand(size, 3, 16, 16, generator=generator)).features
    if name == "text":
        return tower(tokens, torch.ones_like(tokens, dtype=torch.bool)).features
    return tower.decode(tokens, torch.rand(size, 4, 16, generator=generator), None).hidden


@pytest.mark.parametrize("name", ["image", "text", "decoder"])
def test_lengths_that_vary_are_one_graph(name: str) -> None:
    plain, compiled = towers()[name], towers()[name]
    counter = CompileCounter()
    compile_tower(compiled, backend=counter)
    for length in (7, 5, 9, 11, 6):
        torch.testing.assert_close(run(name, compiled, length), run(name, plain, length))
    assert counter.frame_count == 1
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_gradients_are_the_same() -> None:
    for name, plain in towers().items():
        compiled = towers()[name]
        compile_tower(compiled, backend="aot_eager")
        for tower in (plain, compiled):
            run(name, tower, 7).square().sum().backward()
        for (key, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            if a.grad is not None:
                torch.testing.assert_close(b.grad, a.grad, msg=lambda m, n=f"{name}.{key}": f"{n}: {m}")


def test_an_rnn_runs_as_before() -> None:
    encoder: TextEncoder = text_encoders.build({"name": "rnn", "dim": 16}, vocab_size=20, pad_id=0)  # type: ignore[assignment]
    decoder: Decoder = decoders.build({"name": "rnn", "dim": 16}, vocab_size=20, pad_id=0, memory_dim=16)  # type: ignore[assignment]
    for name, tower in {"text": encoder.eval(), "decoder": decoder.eval()}.items():
        expected = [run(name, tower, length) for length in (5, 8)]
        compile_tower(tower, backend="eager")
        for length, value in zip((5, 8), expected, strict=True):
            torch.testing.assert_close(run(name, tower, length), value)
