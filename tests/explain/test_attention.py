"""Where each word looked: one map a word, the decoder's own attention, on the image's grid."""

from __future__ import annotations

import pytest
import torch

from velm.data.base import Record
from velm.data.synthetic.shapes import Shapes
from velm.data.text.bpe import BPETokenizer, ByteTokenizer
from velm.data.text.word import WordTokenizer
from velm.errors import PipelineError
from velm.evaluation.predictions import predict
from velm.explain import explain, saliency_map
from velm.explain.attention import UNKNOWN, _by_word, word_maps
from velm.pipeline import load

TEXTS = ["a small blue square", "a red circle"]
RNN = {"name": "rnn", "dim": 16}
LLAMA = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LLM = {"name": "llm/llama", "config": LLAMA, "shuffle": 2}
RESAMPLER = {"name": "llm/llama", "config": LLAMA, "projector": "resampler", "prefix_tokens": 3}


@pytest.fixture
def images():
    return [record.image for record in Shapes(test_size=2, image_size=32).split("test")]


def encoded(pipeline, images):
    return next(pipeline.encode_images(images, batch_size=8))


@pytest.mark.parametrize("changes", [{}, {"decoder": RNN}, {"decoder": LLM}, {"decoder": RESAMPLER}])
def test_a_map_a_word_that_sums_to_one(write_checkpoint, images, changes):
    pipeline = load(write_checkpoint(**changes))
    found = word_maps(pipeline, encoded(pipeline, images), TEXTS)
    assert [each.words for each in found] == [("a", "small", "blue", "square"), ("a", "red", "circle")]
    assert [tuple(each.maps.shape) for each in found] == [(4, 4, 4), (3, 4, 4)]
    for each in found:
        torch.testing.assert_close(each.maps.sum((1, 2)), torch.ones(len(each.words)))


@pytest.mark.parametrize("changes", [{}, {"decoder": RNN}])
def test_it_is_what_the_engine_saw(write_checkpoint, images, changes):
    """Teacher forcing on what was written gives the attention that was there while it was written."""
    from velm.generation import generate

    pipeline = load(write_checkpoint(**changes))
    image, tokenizer = encoded(pipeline, images), pipeline.tokenizer
    caption = pipeline.caption(images, max_length=5)
    special = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id)
    written = generate(
        pipeline.model.decoder,
        image.features,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        config=pipeline.generation_config(max_length=5),
        suppress=special,
        return_attention=True,
    )
    for row, each in enumerate(word_maps(pipeline, image, caption)):
        seen = written.attention[row, 0, : len(each.words)].unflatten(-1, image.grid)
        torch.testing.assert_close(each.maps, seen)


def test_of_image_and_text_the_image_is_shown(write_checkpoint, images):
    pipeline = load(write_checkpoint(memory=["text", "image"]))
    image, source = encoded(pipeline, images), pipeline.encode_texts(TEXTS)
    for each in word_maps(pipeline, image, TEXTS, source):
        assert each.maps.shape[1:] == (4, 4)
        assert torch.all(each.maps.sum((1, 2)) < 1)


def test_there_may_be_no_map(write_checkpoint, images):
    translator = load(write_checkpoint(memory=["text"], image_encoder=None, losses={"captioning": {}}))
    assert word_maps(translator, None, TEXTS, translator.encode_texts(TEXTS)) == [None, None]
    pipeline = load(write_checkpoint())
    image = encoded(pipeline, images)
    image.grid = None
    assert word_maps(pipeline, image, TEXTS) == [None, None]
    aligner = load(write_checkpoint(decoder=None, losses={"contrastive": {}}))
    with pytest.raises(PipelineError, match="has no decoder"):
        word_maps(aligner, encoded(aligner, images), TEXTS)


def test_an_empty_caption_has_no_words(write_checkpoint, images):
    pipeline = load(write_checkpoint())
    empty, other = word_maps(pipeline, encoded(pipeline, images), ["", "a circle"])
    assert empty.words == ()
    assert empty.maps.shape == (0, 4, 4)
    assert other.words == ("a", "circle")


def trained(tokenizer):
    tokenizer.train(["a striped zebra", "a small zebra"])
    return tokenizer


@pytest.mark.parametrize("tokenizer", [trained(BPETokenizer(vocab_size=300)), ByteTokenizer()], ids=["bpe", "bytes"])
def test_tokens_of_a_word_are_averaged(tokenizer):
    ids = tokenizer.encode("a zebra strip")[1:]
    grids = torch.arange(len(ids), dtype=torch.float)[:, None, None].expand(-1, 2, 2)
    found = _by_word(tokenizer, ids, grids)
    assert found.words == ("a", "zebra", "strip")
    assert found.maps[0, 0, 0] < found.maps[1, 0, 0] < found.maps[2, 0, 0] < len(ids)


def test_an_unknown_word_keeps_its_place():
    tokenizer = trained(WordTokenizer())
    ids = tokenizer.encode("a purple zebra")[1:]
    found = _by_word(tokenizer, ids, torch.rand(len(ids), 2, 2))
    assert found.words == ("a", UNKNOWN, "zebra")


def test_words_without_blanks_have_a_map_each():
    tokenizer = WordTokenizer()
    tokenizer.train(["一只黑狗，在跑 了 now"])
    ids = tokenizer.encode("一只黑狗，在跑 了 now")[1:]
    found = _by_word(tokenizer, ids, torch.rand(len(ids), 2, 2))
    assert found.words == ("一", "只", "黑", "狗，", "在", "跑", "了", "now")
    assert len(found.maps) == 8


@pytest.mark.parametrize("template", ["a red {image} circle", "a {text} circle"])
def test_a_prompt_around_the_image_is_read_and_has_no_place_on_the_map(write_checkpoint, images, template):
    pipeline = load(write_checkpoint(decoder={**LLM, "template": template}, losses={"captioning": {}}))
    image, asked = encoded(pipeline, images), ["blue", "a small square"] if "{text}" in template else None
    found = word_maps(pipeline, image, TEXTS, *pipeline.read_texts(asked))
    for row, each in enumerate(found):
        assert each.maps.shape[1:] == image.grid
        torch.testing.assert_close(each.maps.sum((1, 2)), torch.ones(len(each.words)))
        one = image.select(torch.tensor([row]))
        [alone] = word_maps(pipeline, one, TEXTS[row : row + 1], *pipeline.read_texts(asked and asked[row : row + 1]))
        torch.testing.assert_close(each.maps, alone.maps, atol=1e-5, rtol=0)
    explained = explain(pipeline, images[0], asked, max_length=4)
    assert [each.attention.shape[0] for each in explained] == [len(each.words) for each in explained]
    records = [Record(f"id{i}", each, ("a circle",), ("a red circle",)) for i, each in enumerate(images)]
    assert len(predict(pipeline, records, attention=True, max_length=4).captions.maps) == 2


def test_saliency_of_an_instruction_without_a_text(write_checkpoint, images):
    pytest.importorskip("captum", reason="pip install 'velm[explain]'")
    pipeline = load(write_checkpoint(decoder={**LLM, "template": "a red"}, losses={"captioning": {}}))
    assert saliency_map(pipeline, images[0], TEXTS[0], steps=2).shape == (32, 32)
    pipeline = load(write_checkpoint(decoder={**LLM, "template": "a {text}"}, losses={"captioning": {}}))
    with pytest.raises(PipelineError, match=r"this decoder attends over \[image, text\]"):
        saliency_map(pipeline, images[0], TEXTS[0])
