"""Rules with text, reranking by the model's own alignment, captions in parts."""

from __future__ import annotations

import pytest
import torch

from velm.data.text.bpe import ByteTokenizer
from velm.errors import PipelineError
from velm.outputs import EncoderOutput
from velm.pipeline import load
from velm.pipeline.captioner import Captioner


def captions(pipeline, images, **options):
    found = pipeline.caption_candidates(images, max_length=8, **options)
    return [candidate.text for candidates in found for candidate in candidates]


@pytest.mark.parametrize(
    "search", [{}, {"num_beams": 4, "num_return": 4}, {"temperature": 2.0, "num_return": 3}], ids=str
)
def test_rules_as_text(pipeline, images, search):
    for text in captions(pipeline, images, must_include=["blue square", "red"], forbidden=["large", "a red"], **search):
        assert "blue square" in text
        assert "red" in text
        assert "large" not in text
        assert "a red" not in text
    assert all(text.startswith("a red") for text in captions(pipeline, images, prefix="a red", **search))
    answers = ["a red circle", "a blue square", "blue"]
    assert set(captions(pipeline, images, answers=answers, **search)) <= set(answers)


def test_a_batch_of_one_and_of_many(pipeline, images):
    options = {"num_beams": 4, "must_include": ["star"], "num_return": 2}
    alone = [text for image in images for text in captions(pipeline, [image], **options)]
    assert alone == captions(pipeline, images, batch_size=32, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"must_include": ["red circle"], "forbidden": ["circle"]},
            "must_include 'red circle' holds 'circle', which is",
        ),
        ({"must_include": ["a red circle"], "max_length": 3}, "needs 4 tokens with the prefix and eos; at most 3"),
        ({"num_beams": 500}, "num_beams 500 is more than the vocabulary has tokens, 1"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is more than max_length 8"),
        ({"prefix": " "}, "prefix is ' '; it takes text that is not empty"),
    ],
    ids=str,
)
def test_contradictions_are_named_as_text_before_an_image_is_read(pipeline, options, message):
    with pytest.raises(PipelineError, match=message):
        pipeline.caption(["nowhere.jpg"], **options)


def test_log_probabilities(pipeline, images):
    for candidates in pipeline.caption_candidates(images, num_beams=3, num_return=3, length_penalty=0.0, max_length=6):
        for candidate in candidates:
            assert candidate.log_prob == pytest.approx(candidate.score, abs=1e-5)
            assert candidate.cosine is None


def test_reranking_adds_the_cosine(pipeline, images):
    plain = pipeline.caption_candidates(images, num_beams=5, num_return=5, max_length=6)
    reranked = pipeline.caption_candidates(images, num_beams=5, num_return=2, max_length=6, rerank_by_alignment=3.0)
    for image, before, after in zip(images, plain, reranked, strict=True):
        cosines = pipeline.score([image], [candidate.text for candidate in before])[0].tolist()
        expected = sorted(
            ((c.score + 3.0 * cosine, c.text) for c, cosine in zip(before, cosines, strict=True)), reverse=True
        )
        assert [candidate.text for candidate in after] == [text for _, text in expected[:2]]
        assert [candidate.score for candidate in after] == pytest.approx([score for score, _ in expected[:2]], abs=1e-5)
        at = {candidate.text: cosine for candidate, cosine in zip(before, cosines, strict=True)}
        assert all(candidate.cosine == pytest.approx(at[candidate.text], abs=1e-5) for candidate in after)
    samples = pipeline.caption_candidates(images, temperature=1.0, num_return=4, rerank_by_alignment=1.0)
    assert all([c.score for c in row] == sorted((c.score for c in row), reverse=True) for row in samples)


def test_an_empty_caption_has_nothing_to_embed_and_comes_last(pipeline, images):
    with torch.no_grad():
        pipeline.model.decoder.output_projection.bias[pipeline.tokenizer.eos_id] = 9.0
    (row,) = pipeline.caption_candidates(images[:1], num_beams=3, num_return=3, rerank_by_alignment=100.0)
    assert [candidate.text == "" for candidate in row] == [False, False, True]
    assert row[-1].cosine == -1.0


def test_reranking_needs_both(write_checkpoint, images):
    with pytest.warns(UserWarning, match="left out"):
        writer = load(write_checkpoint(losses={"captioning": {}}))
    with pytest.raises(PipelineError, match="not trained to align"):
        writer.caption(images, num_beams=3, rerank_by_alignment=1.0)
    translator = load(write_checkpoint(memory=["text"]))
    with pytest.raises(PipelineError, match="compares with the image, which this decoder does not see"):
        translator.caption(texts=["a star"], num_beams=3, rerank_by_alignment=1.0)


@pytest.mark.parametrize("options", [{}, {"prefix": "a red"}, {"must_include": ["blue square"]}], ids=str)
def test_parts_join_to_the_caption(pipeline, images, options):
    parts = list(pipeline.stream_caption(images[0], max_length=8, **options))
    assert "".join(parts) == pipeline.caption(images[:1], max_length=8, **options)[0]
    assert len(parts) > 2
    assert all(parts)


def test_the_caption_of_a_text_in_parts(write_checkpoint):
    translator = load(write_checkpoint(memory=["text"], image_encoder=None, losses={"captioning": {}}))
    parts = translator.stream_caption(text="a red star", max_length=6)
    assert "".join(parts) == translator.caption(texts=["a red star"], max_length=6)[0]


def test_half_a_character_waits(pipeline, monkeypatch):
    tokens = [*ByteTokenizer().to_ids("né!"), ByteTokenizer.eos_id]
    monkeypatch.setattr("velm.pipeline.captioner.stream", lambda *_, **__: iter(torch.tensor(tokens)[:, None]))
    captioner, image = Captioner(pipeline.model, ByteTokenizer(), 16), torch.zeros(1, 4, 16)
    parts = captioner.stream(EncoderOutput(image, image[:, 0]), None, captioner.config())
    assert list(parts) == ["n", "é", "!"]


def test_rules_are_compiled_once_for_all_batches(pipeline, images, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        "velm.generation.constraints.Constraints._compile", lambda self, *_: compiled.append(self.config.must_include)
    )
    pipeline.caption(images, batch_size=1, must_include=["red"], max_length=4)
    assert len(compiled) == 1
    pipeline.caption(images, batch_size=1, max_length=4)
    assert len(compiled) == 2


def test_beams_cannot_be_streamed(pipeline, images):
    with pytest.raises(PipelineError, match="decided at the end only; stream greedily or one sample"):
        pipeline.stream_caption(images[0], num_beams=3)
