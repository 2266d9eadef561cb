"""Traps of importing (doors.md): each one, planted in an import that is right, makes it differ from the original."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from foreign import Original, images
from PIL import Image

import velm
from velm.sources import ForeignModel, describe_source
from velm.sources.open import as_checkpoint

TEXTS = ["two Brown dogs, quickly", "it's a café", "snow " * 90]
SIZES = [(70, 45), (51, 32), (300, 400)]  # 51: half a pixel is left on both sides of the crop


class Case:
    """A model of transformers and what it makes of images, a JPEG file among them, and texts."""

    def __init__(self, folder: Any, kind: str) -> None:
        from transformers import AutoImageProcessor

        self.folder = folder
        self.images: list[Any] = [images(1, size)[0] for size in SIZES]
        photograph = folder / "photograph.jpg"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(photograph)
        opened = [*self.images, Image.open(photograph)]
        self.images.append(str(photograph))
        original, processor = Original(folder), AutoImageProcessor.from_pretrained(folder)
        pixels = torch.stack([processor(each, return_tensors="pt")["pixel_values"][0] for each in opened])
        larger = torch.nn.functional.interpolate(pixels[:1], (24, 24))
        with torch.no_grad():
            out = original(TEXTS, pixels)
            other = original(TEXTS[:1], larger, interpolate_pos_encoding=True).image_embeds
        self.expected = [out.image_embeds, out.text_embeds, out.logits_per_image, other]
        self.larger = larger

    def differences(self, monkeypatch: pytest.MonkeyPatch, model: ForeignModel) -> list[float]:
        """Largest differences of embeddings of images and texts, relative logits, and images of another size."""
        checkpoint = as_checkpoint(model)
        monkeypatch.setattr("velm.pipeline.loading.open_source", lambda path: checkpoint)
        pipeline = velm.load("a model")
        with torch.no_grad():
            encoded = pipeline.model.encode_image(self.larger)
            other = pipeline.model.embed_image(encoded)
        embeds = [pipeline.embed_images(self.images), pipeline.embed_texts(TEXTS)]
        given = [*embeds, pipeline.score(self.images, TEXTS, kind="logit"), other]
        pairs = list(zip(given, self.expected, strict=True))
        return [((one - two).abs().max() / max(1.0, two.abs().max().item())).item() for one, two in pairs]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def case(request, folders) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"hidden_act": "quick_gelu"} if request.param == "clip" else {"version": 1}
        made = Case(folders(request.param, **options), request.param)
    made.kind = request.param
    return made


def part(name: str, **changes: Any) -> Callable[[ForeignModel], ForeignModel]:
    return lambda model: replace(model, model={**model.model, name: {**model.model[name], **changes}})


def data(**changes: Any) -> Callable[[ForeignModel], ForeignModel]:
    return lambda model: replace(model, data={**model.data, **changes})


def weight(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[ForeignModel], ForeignModel]:
    def plant(model: ForeignModel) -> ForeignModel:
        def read(vocab_size: int) -> dict[str, torch.Tensor]:
            weights = model.read_weights(vocab_size)
            return {**weights, name: change(weights[name])}

        return replace(model, read_weights=read)

    return plant


def swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


BLOCK = "model.image_encoder.blocks.0.attention"
TRAPS: dict[str, tuple[str, Callable[[ForeignModel], ForeignModel]]] = {
    "the activation is the exact GELU": ("clip", part("image_encoder", activation="gelu")),
    "the tanh of GELU is left out": ("siglip", part("text_encoder", activation="gelu")),
    "a text is pooled at its first token": ("clip", part("text_encoder", pooling="mean")),
    "a text is pooled at its last word": ("siglip", part("text_encoder", pooling="last")),
    "padding is masked": ("siglip", part("text_encoder", fixed_length=None, pooling="last")),
    "padding has another id": ("siglip", part("text_encoder", fill_id=2)),
    "bos is read": (
        "siglip", lambda model: data(max_length=16)(part("text_encoder", reads_bos=True, max_length=16)(model))
    ),
    "every word sees every other": ("clip", part("text_encoder", causal=False)),
    "keys and values are exchanged": ("clip", weight(f"{BLOCK}.key_value.weight", swap_halves)),
    "the class token is another vector": ("clip", weight("model.image_encoder.class_token", lambda t: t.roll(1))),
    "a square projection is transposed": ("siglip", weight("model.text_projection.weight", lambda t: t.T.contiguous())),
    "images are resized bilinearly": ("clip", data(interpolation="bilinear")),
    "half a pixel is rounded to even": ("clip", data(crop_rounding="even")),
    "images are cropped before they are resized": ("clip", data(resize="crop")),
    "images are squashed": ("clip", data(resize="squash")),
    "the shorter side is kept": ("siglip", data(resize="shortest")),
    "a JPEG is decoded at half its size": ("clip", data(decode="scaled")),
    "pixels have another mean": ("siglip", part("image_encoder", image_mean=[0.485, 0.456, 0.406])),
    "the scale is limited to 100": ("siglip", weight("losses.sigmoid.log_scale", lambda t: t.clamp(max=4.6052))),
    "there is no bias": ("siglip", weight("losses.sigmoid.bias", torch.zeros_like)),
    "positions are resized with antialias": ("clip", part("image_encoder", position_antialias=True)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_the_import_is_right(case, monkeypatch):
    assert max(case.differences(monkeypatch, describe_source(f"hf/{case.folder}"))) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_shows(case, monkeypatch, name):
    kind, plant = TRAPS[name]
    if kind != case.kind:
        pytest.skip(f"a trap of {kind}")
    differences = case.differences(monkeypatch, plant(describe_source(f"hf/{case.folder}")))
    assert max(differences) > 1e-4, differences


def test_a_text_cut_without_eos_shows(folders, monkeypatch):
    folder = folders("clip", hidden_act="quick_gelu")
    pipeline, original = velm.load(f"hf/{folder}"), Original(folder)
    monkeypatch.setattr("velm.pipeline.pipeline.truncate", lambda ids, length: ids[:length])
    with torch.no_grad():
        theirs = original.model.get_text_features(**original.ids(TEXTS[2:])).pooler_output
    theirs = torch.nn.functional.normalize(theirs, dim=-1)
    assert (pipeline.embed_texts(TEXTS[2:]) - theirs).abs().max() > 1e-4


def test_text_that_is_not_cleaned_shows():
    import open_clip

    from velm.data.text.clip import CLIPTokenizer

    text = "A  Dog &amp; a cat\u2019s  TOY"
    theirs = open_clip.SimpleTokenizer().encode(text)
    assert CLIPTokenizer().to_ids(text) == theirs
    assert CLIPTokenizer(clean="whitespace").to_ids(text) != theirs
