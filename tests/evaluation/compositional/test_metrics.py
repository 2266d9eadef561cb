"""Compositional figures: by hand with embeddings that are given, and as the pipeline says."""

from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor

from velm.data.synthetic.shapes import Shapes
from velm.errors import PipelineError
from velm.evaluation.compositional.metrics import compositional_figures, hard_negatives
from velm.evaluation.predictions import Predictions, predict
from velm.pipeline import load

TEXTS = ["a red circle left of a blue square", "a blue square right of a red circle", "a green star", "a cat on a mat"]
IDS = [0, 0, 1, 2]


def test_pairs_are_the_first_that_is_false() -> None:
    found = hard_negatives(TEXTS, IDS)
    assert set(found) == {"colour", "shape", "order", "relation", "new_colour", "new_shape"}
    assert found["colour"] == [(0, 0, "a blue circle left of a red square")]
    assert [pair[:2] for pair in found["new_colour"]] == [(0, 0), (1, 2)]
    # what is true of the image is no negative: the next sentence is asked
    both = ["a red circle left of a red star", "a red star left of a red circle", "a red ring over a red star"]
    assert [pair[1] for pair in hard_negatives(both, [0, 0, 0])["order"]] == [2]


class Said:
    """A pipeline that embeds what it has been told to."""

    writes, model = False, types.SimpleNamespace(memory_sources=())

    def __init__(self, embeds: dict[str, list[float]]) -> None:
        self.embeds = embeds

    def require_alignment(self) -> None: ...

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([self.embeds.get(text, [0.5, 0.5]) for text in texts])


def test_figures_by_hand() -> None:
    image, text = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = ["a red circle left of a blue square", "a red star left of a blue ring"]
    pipeline = Said({"a blue circle left of a red square": [2.0, 0.0], "a blue star left of a red ring": [0.0, 1.0]})
    found = compositional_figures(pipeline, [], Predictions(image, text, torch.arange(2), texts))  # type: ignore[arg-type]
    assert found["compositional/colour"] == 0  # the first one is worse, the second a tie
    assert found["compositional/shape"] == found["compositional/order"] == 1
    assert found["compositional/shape/blind"] == 0  # the other image is as far from it as can be
    assert found["compositional/colour/pairs"] == 2
    assert not any(name.endswith("captioner") for name in found)


def test_it_is_what_the_pipeline_says(write_checkpoint) -> None:  # type: ignore[no-untyped-def]
    pipeline, records = load(write_checkpoint()), Shapes(test_size=6, image_size=32).split("test")
    found = predict(pipeline, records, max_length=2)
    figures = compositional_figures(pipeline, records, found, batch_size=4)
    assert {
        "compositional/relation",
        "compositional/relation/captioner",
        "compositional/order/blind",
        "compositional/size/captioner_blind",
    } <= set(figures)
    pairs = hard_negatives(found.texts, found.image_ids.tolist())["relation"]
    assert len(pairs) == figures["compositional/relation/pairs"] == 6
    scores = [pipeline.score([records[p.image].image], [found.texts[p.text], p.negative])[0] for p in pairs]
    assert figures["compositional/relation"] == sum(bool(a > b) for a, b in scores) / 6
    one = compositional_figures(pipeline, records, found, batch_size=1)
    assert {k: v for k, v in one.items() if "captioner" not in k} == {
        k: v for k, v in figures.items() if "captioner" not in k
    }


def test_a_model_that_does_not_align_is_refused(write_checkpoint) -> None:  # type: ignore[no-untyped-def]
    with pytest.warns(UserWarning, match="left out"):
        writer = load(write_checkpoint(losses={"captioning": {}}))
    with pytest.raises(PipelineError, match="was not trained to align"):
        compositional_figures(writer, [], Predictions())
