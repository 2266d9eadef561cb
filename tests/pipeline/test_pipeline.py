"""The pipeline: results in order, batches change nothing, and what a model cannot do is a clear error."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from velm.errors import DataError, PipelineError
from velm.pipeline import Pipeline, load

TEXTS = ["a red circle", "a large green ring left of a red star", "a blue square", "a small blue square", "a star"]


@pytest.fixture
def images(images):
    """Five images; the first three are those of the other tests."""
    return [*images, images[0][:20], images[1][10:]]


def test_captions_come_in_order_whatever_the_batch_size(pipeline, images):
    together = pipeline.caption(images, batch_size=5)
    assert together == pipeline.caption(images, batch_size=2) == pipeline.caption(images, batch_size=1)
    assert together[::-1] == pipeline.caption(images[::-1], batch_size=3)
    assert all(isinstance(caption, str) for caption in together)
    assert pipeline.caption([]) == []


def test_paths_images_and_arrays_are_the_same(pipeline, images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    ways = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(images[0]), images[0]]
    embeds = pipeline.embed_images(ways)
    assert torch.allclose(embeds, embeds[:1].expand(4, -1), atol=1e-6)
    alike = np.stack([images[0], images[0]])
    assert len(pipeline.caption(alike)) == 2


def test_embeddings_are_normalised_and_in_order(pipeline, images):
    image_embeds, text_embeds = pipeline.embed_images(images, batch_size=2), pipeline.embed_texts(TEXTS, batch_size=2)
    assert image_embeds.shape == text_embeds.shape == (5, 8)
    for embeds in (image_embeds, text_embeds):
        assert torch.allclose(embeds.norm(dim=1), torch.ones(5), atol=1e-5)
        assert not embeds.is_inference()  # may go into a loss
    single = torch.cat([pipeline.embed_texts([text]) for text in TEXTS])
    assert torch.allclose(text_embeds, single, atol=1e-5)
    assert torch.allclose(image_embeds[3:4], pipeline.embed_images(images[3:4]), atol=1e-5)
    assert pipeline.embed_texts([]).shape == pipeline.embed_images([]).shape == (0, 8)


def test_score_is_the_cosine_of_every_pair(pipeline, images):
    scores = pipeline.score(images[:3], TEXTS)
    assert scores.shape == (3, 5)
    expected = pipeline.embed_images(images[1:2]) @ pipeline.embed_texts(TEXTS[4:]).T
    assert torch.allclose(scores[1, 4], expected[0, 0], atol=1e-5)


def test_candidates_are_best_first_and_caption_is_the_first(pipeline, images):
    found = pipeline.caption_candidates(images[:2], num_beams=4, num_return=3, max_length=5)
    assert [len(candidates) for candidates in found] == [3, 3]
    assert [candidates[0].text for candidates in found] == pipeline.caption(images[:2], num_beams=4, max_length=5)
    longest = max(len(candidate.text.split()) for candidates in found for candidate in candidates)
    assert longest <= 5
    for candidates in found:
        assert len({candidate.text for candidate in candidates}) == 3
        assert all(np.isfinite(candidate.score) for candidate in candidates)


def test_the_longest_caption_is_that_of_the_training(pipeline):
    assert pipeline.generation_config().max_length == 15  # max_length 16 of the checkpoint, without bos
    assert pipeline.generation_config(max_length=3).max_length == 3


def test_special_tokens_are_never_written(pipeline, images):
    text = " ".join(pipeline.caption(images, temperature=5.0))
    assert "<" not in text


def test_in_bfloat16_all_is_nearly_the_same(write_checkpoint, images):
    checkpoint = write_checkpoint()
    full, half = load(checkpoint), load(checkpoint, precision="bf16")
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    for name, given in (("embed_images", images), ("embed_texts", TEXTS)):
        one, two = getattr(full, name)(given), getattr(half, name)(given)
        assert two.dtype == torch.float32
        assert (one * two).sum(dim=1).min() > 0.99
    wanted = {"num_beams": 3, "max_length": 6, "must_include": ["circle"]}
    for one, two in zip(*(p.caption_candidates(images, **wanted) for p in (full, half)), strict=True):
        assert "circle" in two[0].text.split()
        assert two[0].score == pytest.approx(one[0].score, rel=0.05)


def test_an_unknown_precision_is_refused(write_checkpoint):
    with pytest.raises(PipelineError, match="Unknown precision '16'; it is '32' or 'bf16'"):
        load(write_checkpoint(), precision="16")


def test_text_in_the_memory(write_checkpoint, images):
    translator = load(write_checkpoint(memory=["text"], image_encoder=None, losses={"captioning": {}}))
    assert translator.caption(texts=TEXTS, batch_size=2) == translator.caption(texts=TEXTS)
    with pytest.raises(PipelineError, match=r"attends over text: give texts=\[\.\.\.\]; got images=\[\.\.\.\]"):
        translator.caption(images)

    both = load(write_checkpoint(memory=["image", "text"], losses={"captioning": {}}))
    assert both.caption(images, TEXTS, batch_size=2) == both.caption(images, TEXTS)
    with pytest.raises(PipelineError, match=r"image and text: give images=\[\.\.\.\] and texts=.*; got images="):
        both.caption(images)
    with pytest.raises(PipelineError, match="got 5 images and 2 texts"):
        both.caption(images, TEXTS[:2])
    with pytest.raises(PipelineError, match="not trained to align"):  # both encoders, but no alignment loss
        both.embed_texts(TEXTS)


def test_text_where_none_is_attended_to(pipeline, images):
    with pytest.raises(PipelineError, match=r"attends over image: give images=\[\.\.\.\]; got images=.* and texts="):
        pipeline.caption(images, TEXTS)
    with pytest.raises(PipelineError, match="got nothing"):
        pipeline.caption()


def test_no_decoder_but_captioning_wanted(write_checkpoint, images):
    aligner = load(write_checkpoint(decoder=None, losses={"contrastive": {}}))
    with pytest.raises(PipelineError, match=r"no decoder, so it cannot write captions.*losses: \{captioning"):
        aligner.caption(images)
    assert aligner.score(images, TEXTS).shape == (5, 5)


def test_no_alignment_but_embeddings_wanted(write_checkpoint, images):
    with pytest.warns(UserWarning, match="left out"):
        writer = load(write_checkpoint(losses={"captioning": {}}))
    for ask in (lambda: writer.embed_images(images), lambda: writer.embed_texts(TEXTS)):
        with pytest.raises(PipelineError, match=r"not trained to align.*losses: \{contrastive"):
            ask()
    assert len(writer.caption(images)) == 5


@pytest.mark.parametrize("single", ["a.jpg", np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8))])
def test_a_single_image_is_no_list(pipeline, single):
    with pytest.raises(PipelineError, match=r"images is a list, also of one; got a single \w+\. Write \[image\]"):
        pipeline.caption(single)


def test_empty_text_and_wrong_options(pipeline, images):
    with pytest.raises(PipelineError, match=r"texts\[1\] is ' '; it takes text that is not empty"):
        pipeline.embed_texts(["a star", " "])
    with pytest.raises(PipelineError, match=r"Unknown \['num_beam'\]\. Options of writing: .*num_beams"):
        pipeline.caption(images, num_beam=5)
    with pytest.raises(PipelineError, match="num_return 3 is more than num_beams 1"):
        pipeline.caption(images, num_return=3)
    with pytest.raises(PipelineError, match="batch_size 0 is too small"):
        pipeline.embed_images(images, batch_size=0)


def test_too_long_a_text_is_cut_with_a_warning(pipeline):
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than the 16 tokens .* longest has 32"):
        embeds = pipeline.embed_texts(["a star", "a red " * 15])
    assert torch.isfinite(embeds).all()


def test_an_unreadable_image_is_named(pipeline, images, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        pipeline.caption([images[0], tmp_path / "broken.jpg"], batch_size=1)
    with pytest.raises(DataError, match=r"nowhere\.jpg"):
        pipeline.caption([tmp_path / "nowhere.jpg"])


def test_a_device_that_is_not_there(pipeline, write_checkpoint):
    with pytest.raises(PipelineError, match=r"Cannot compute on the device 'nonsense': \w"):
        load(write_checkpoint(), device="nonsense")


def test_the_model_is_in_eval_mode_and_public_names_lead_here(pipeline):
    import velm

    assert not pipeline.model.training
    assert velm.load is load
    assert velm.Pipeline is Pipeline


def test_loading_imports_no_lightning(write_checkpoint):
    program = f"import sys, velm; velm.load({str(write_checkpoint())!r}); print('lightning' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_images_may_be_shown_at_another_size(write_checkpoint, images):
    """The checkpoint's 32 pixels become 64: four times as many patches, the same sentences to hold them against."""
    path = write_checkpoint()
    as_validated, larger = load(path), load(path, image_size=64)
    assert (as_validated.transform.image_size, larger.transform.image_size) == (32, 64)
    [small], [large] = (list(p.encode_images(images[:1], batch_size=1)) for p in (as_validated, larger))
    assert (small.grid, large.grid) == ((4, 4), (8, 8))
    assert larger.transform.resize == as_validated.transform.resize
