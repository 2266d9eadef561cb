"""Compositional metrics: by hand with given embeddings, and in agreement with the pipeline."""

from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor

from velm.data.synthetic.shapes import Shapes
from velm.errors import PipelineError
from velm.evaluation.compositional import compositional_metrics, hard_negatives
from velm.evaluation.predictions import Retrieval, predict
from velm.pipeline import load

TEXTS = ["a red circle left of a blue square", "a blue square right of a red circle", "a green star", "a cat on a mat"]
IDS = [0, 0, 1, 2]


def test_pairs_are_the_first_that_is_false() -> None:
    found = hard_negatives(TEXTS, IDS)
    assert set(found) == {"colour", "shape", "order", "relation", "new_colour", "new_shape"}
    assert found["colour"] == [(0, 0, "a blue circle left of a red square")]
    assert [pair[:2] for pair in found["new_colour"]] == [(0, 0), (1, 2)]
    # a negative that is true of the image is rejected, and the next caption is tried
    both = ["a red circle left of a red star", "a red star left of a red circle", "a red ring over a red star"]
    assert [pair[1] for pair in hard_negatives(both, [0, 0, 0])["order"]] == [2]


class FakePipeline:
    """Returns given embeddings."""

    writes, model = False, types.SimpleNamespace(memory_sources=())

    def __init__(self, embeds: dict[str, list[float]]) -> None:
        self.embeds = embeds

    def require_alignment(self) -> None: ...

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([self.embeds.get(text, [0.5, 0.5]) for text in texts])


def test_metrics_by_hand() -> None:
    image, text = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = ["a red circle left of a blue square", "a red star left of a blue ring"]
    pipeline = FakePipeline(
        {"a blue circle left of a red square": [2.0, 0.0], "a blue star left of a red ring": [0.0, 1.0]}
    )
    found = compositional_metrics(pipeline, [], Retrieval(image, text, torch.arange(2), texts))  # type: ignore[arg-type]
    assert found["compositional/colour"] == 0  # the first one is worse, the second a tie
    assert found["compositional/shape"] == found["compositional/order"] == 1
    assert found["compositional/shape/blind"] == 0  # the other image is orthogonal
    assert found["compositional/colour/pairs"] == 2
    assert not any(name.endswith("captioner") for name in found)


def test_metrics_agree_with_the_pipeline(write_checkpoint) -> None:  # type: ignore[no-untyped-def]
    pipeline, records = load(write_checkpoint()), Shapes(test_size=6, image_size=32).split("test")
    found = predict(pipeline, records, max_length=2).retrieval
    metrics = compositional_metrics(pipeline, records, found, batch_size=4)
    assert {
        "compositional/relation",
        "compositional/relation/captioner",
        "compositional/order/blind",
        "compositional/size/captioner_blind",
    } <= set(metrics)
    pairs = hard_negatives(found.texts, found.image_ids.tolist())["relation"]
    assert len(pairs) == metrics["compositional/relation/pairs"] == 6
    scores = [pipeline.score([records[p.image].image], [found.texts[p.text], p.negative])[0] for p in pairs]
    assert metrics["compositional/relation"] == sum(bool(a > b) for a, b in scores) / 6
    one = compositional_metrics(pipeline, records, found, batch_size=1)
    assert {k: v for k, v in one.items() if "captioner" not in k} == {
        k: v for k, v in metrics.items() if "captioner" not in k
    }


def test_a_model_that_does_not_align_is_refused(write_checkpoint) -> None:  # type: ignore[no-untyped-def]
    with pytest.warns(UserWarning, match="left out"):
        writer = load(write_checkpoint(losses={"captioning": {}}))
    with pytest.raises(PipelineError, match="was not trained to align"):
        compositional_metrics(writer, [], Retrieval(torch.eye(1), torch.eye(1), torch.arange(1), ["a"]))
