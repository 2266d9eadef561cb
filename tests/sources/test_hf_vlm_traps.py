"""Traps of importing a vision-language model (doors.md): each, planted in a right import, makes another model of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import velm
from velm.sources import ForeignModel, describe_source
from velm.sources.open import as_checkpoint


def part(name: str, **changes: Any) -> Callable[[ForeignModel], ForeignModel]:
    return lambda model: replace(model, model={**model.model, name: {**model.model[name], **changes}})


def reads(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[..., ForeignModel]:
    return lambda model: replace(model, read_weights=lambda size: change(model.read_weights(size)))


def one_block_more(model: ForeignModel) -> ForeignModel:
    """The output of the last block, whose weights are those of the one before it."""
    depth = model.model["image_encoder"]["depth"]
    last, new = f"image_encoder.blocks.{depth - 1}.", f"image_encoder.blocks.{depth}."
    with_block = reads(lambda w: w | {k.replace(last, new): v for k, v in w.items() if last in k})
    return with_block(part("image_encoder", depth=depth + 1)(model))


def final_norm(model: ForeignModel) -> ForeignModel:
    ones = {"model.image_encoder.norm.weight": torch.ones(48), "model.image_encoder.norm.bias": torch.zeros(48)}
    return reads(lambda w: w | ones)(part("image_encoder", output_norm=True)(model))


def scale_projector(factor: float) -> Callable[[ForeignModel], ForeignModel]:
    names = tuple(f"model.decoder.projector.map.{each}" for each in ("weight", "bias", "2.weight", "2.bias"))
    return reads(lambda w: {k: v * factor if k in names else v for k, v in w.items()})


def columns_first(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The positions of a square in the order of its columns."""
    name = "model.decoder.projector.map.weight"
    squares = weights[name].unflatten(1, (2, 2, -1)).transpose(1, 2).flatten(1)
    return weights | {name: squares}


def untied(model: ForeignModel) -> ForeignModel:
    decoder = model.model["decoder"]
    change = part("decoder", config={**decoder["config"], "tie_word_embeddings": False})
    name = "model.decoder.output_projection.weight"
    return reads(lambda w: w | {name: torch.randn_like(w[name])})(change(model))


def config_of(name: str, **changes: Any) -> Callable[[ForeignModel], ForeignModel]:
    """A change of the language model's hyper-parameters."""
    return lambda model: part(name, config={**model.model[name]["config"], **changes})(model)


TRAPS: dict[str, tuple[str, Callable[[ForeignModel], ForeignModel]]] = {
    "the class token is not dropped": ("llama", part("image_encoder", class_in_features=True)),
    "the class token is dropped": ("gemma3_text", part("image_encoder", class_in_features=False)),
    "the last block is read": ("llama", one_block_more),
    "the last norm is applied": ("llama", final_norm),
    "the activation of the tower is GELU": ("llama", part("image_encoder", activation="gelu")),
    "the tanh of GELU is left out": ("idefics3", part("image_encoder", activation="gelu")),
    "a square is joined by columns": ("idefics3", reads(columns_first)),
    "images are squashed at once": ("idefics3", lambda model: replace(model, data={**model.data, "resize": "squash"})),
    "images are resized bicubically": (
        "idefics3", lambda model: replace(model, data={**model.data, "interpolation": "bicubic"})
    ),
    "the image is scaled as words are": ("paligemma", scale_projector(32**0.5)),
    "the image is divided by it": ("paligemma", scale_projector(32**-0.5)),
    "Gemma 3's image is scaled": ("gemma3_text", scale_projector(32**0.5)),
    "the prefix is read causally": ("paligemma", part("decoder", prefix_attention="causal")),
    "the prefix is read in both directions": ("llama", part("decoder", prefix_attention="bidirectional")),
    "the tied head is another": ("gemma3_text", untied),
    "there is no window": ("mistral", config_of("decoder", sliding_window=None)),
    "the window is one longer": ("gemma3_text", config_of("decoder", sliding_window=9)),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
@torch.no_grad()
def test_a_trap_shows(vlm_of, monkeypatch, trap):
    name, plant = TRAPS[trap]
    case = vlm_of(name)
    with torch.random.fork_rng(devices=[]):
        checkpoint = as_checkpoint(plant(describe_source(f"hf/{case.folder}")))
    monkeypatch.setattr("velm.pipeline.loading.open_source", lambda path: checkpoint)
    logits, expected = case.ours(velm.load("a model"))[1], case.expected()[1]
    assert max(float((a - b).abs().max()) for a, b in zip(logits, expected, strict=True)) > 1e-4


@torch.no_grad()
def test_bos_twice_shows(vlm_of, monkeypatch):
    case = vlm_of("llama")
    bos = case.prompt.before[:, :1]
    twice = replace(
        case.prompt,
        before=torch.cat([bos, case.prompt.before], dim=1),
        before_mask=torch.cat([torch.ones_like(bos, dtype=torch.bool), case.prompt.before_mask], dim=1),
    )
    monkeypatch.setattr(case, "prompt", twice)
    loss = case.ours(case.pipeline)[0]
    assert abs(float(loss - case.expected()[0])) > 1e-3
