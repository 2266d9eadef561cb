"""CLIP and SigLIP of transformers: embeddings, logits, losses and gradients are those of the original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign import TEXTS, Original, images, randomise, save_clip
from torch import Tensor

import velm
from velm.errors import CheckpointError
from velm.losses.weighted import build_losses
from velm.outputs import Batch
from velm.sources import describe_source, open_source
from velm.sources.hf_clip import clip_weights, siglip_weights
from velm.sources.state_dict import StateDict

CLIP = [
    {"hidden_act": "quick_gelu", "eos": 49407},
    {"hidden_act": "gelu", "eos": 2},  # the config of OpenAI's checkpoints says 2: the largest id is pooled
]
SIGLIP = [{"version": 1}, {"version": 2}]
KINDS = [("clip", each) for each in CLIP] + [("siglip", each) for each in SIGLIP]


def pixels_of(pipeline: Any, count: int = 3) -> Tensor:
    """Normalised images, as both models read them."""
    raw = torch.stack([pipeline.transform(image) for image in images(count)]).float() / 255
    encoder = pipeline.model.image_encoder
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.image_mean, encoder.image_std))
    return (raw - mean) / std


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_embeddings_and_logits(folders, kind, options):
    folder = folders(kind, **options)
    pipeline, original = velm.load(f"hf/{folder}"), Original(folder)
    pixels = pixels_of(pipeline)
    with torch.no_grad():
        theirs = original(TEXTS, pixels)
        image = pipeline.model.embed_image(pipeline.model.encode_image(pixels))
    torch.testing.assert_close(image, theirs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(pipeline.embed_texts(TEXTS), theirs.text_embeds, atol=1e-5, rtol=0)
    for text, embed in zip(TEXTS, theirs.text_embeds, strict=True):  # a batch of one
        torch.testing.assert_close(pipeline.embed_texts([text])[0], embed, atol=1e-5, rtol=0)
    logits = pipeline.logit_scale * image @ pipeline.embed_texts(TEXTS).T + (pipeline.logit_bias or 0.0)
    torch.testing.assert_close(logits, theirs.logits_per_image, atol=1e-4, rtol=1e-5)
    assert pipeline.logit_scale == pytest.approx(original.model.logit_scale.exp().item())


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_another_image_size(folders, kind, options):
    folder = folders(kind, **options)
    pipeline, original = velm.load(f"hf/{folder}", image_size=48), Original(folder)
    for size in (48, 24):
        pixels = torch.nn.functional.interpolate(pixels_of(pipeline), (size, size))
        with torch.no_grad():
            theirs = original(TEXTS[:1], pixels, interpolate_pos_encoding=True).image_embeds
            ours = pipeline.model.embed_image(pipeline.model.encode_image(pixels))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_losses_and_gradients(folders, kind, options):
    folder = folders(kind, **options)
    checkpoint, original = open_source(f"hf/{folder}"), Original(folder)
    pipeline = velm.load(f"hf/{folder}")
    model, losses = pipeline.model.requires_grad_(True), build_losses(checkpoint.config["losses"])
    losses.load_state_dict(checkpoint.loss_weights)
    texts, pixels = TEXTS[:3], pixels_of(pipeline)
    theirs = original(texts, pixels, return_loss=True).loss
    theirs.backward()
    tokens, mask = pipeline.tokenize(texts)
    ours, _ = losses(model(Batch(pixels, tokens, mask, torch.arange(3))), Batch(pixels, tokens, mask, torch.arange(3)))
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = StateDict({name: p.grad for name, p in original.model.named_parameters()}, "gradients")
    translate = clip_weights if kind == "clip" else siglip_weights
    expected = translate(gradients, original.model.config, pipeline.tokenizer.vocab_size)
    for name, parameter in model.named_parameters():
        if name != "image_encoder.class_token":  # the sum of a token and its position, which have the same gradient
            given = expected[f"model.{name}"]
            scale = max(1.0, given.abs().max().item())
            torch.testing.assert_close(parameter.grad / scale, given / scale, atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(
        losses[next(iter(losses))].log_scale.grad.reshape(-1),
        original.model.logit_scale.grad.reshape(-1),
        atol=1e-4,
        rtol=1e-4,
    )


def test_probabilities_are_a_softmax_or_sigmoids(folders):
    clip, siglip = velm.load(f"hf/{folders('clip', **CLIP[0])}"), velm.load(f"hf/{folders('siglip', version=1)}")
    texts = TEXTS[:3]
    given = clip.score(images(), texts, kind="probability")
    torch.testing.assert_close(given, (clip.logit_scale * clip.score(images(), texts)).softmax(-1))
    pairs = siglip.score(images(), texts, kind="probability")
    torch.testing.assert_close(pairs, siglip.score(images(), texts, kind="logit").sigmoid())
    assert siglip.logit_scale > 100
    assert siglip.logit_bias == pytest.approx(-12.9)


def test_pad_may_be_eos(folders):
    """G2: SigLIP attends over its padding, which is eos, whatever id the tokenizer pads with."""
    described = describe_source(f"hf/{folders('siglip', version=1)}")
    assert described.model["text_encoder"]["fill_id"] == 1
    assert describe_source(f"hf/{folders('siglip', version=2)}").model["text_encoder"]["fill_id"] == 0


@pytest.mark.parametrize("missing", ["vision_model.post_layernorm.bias", "logit_scale"])
def test_half_a_state_dict_is_refused(folders, tmp_path, missing):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders("clip", **CLIP[0]), tmp_path / "half")
    state = load_file(folder / "model.safetensors")
    del state[missing]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"missing.*{missing}"):
        velm.load(f"hf/{folder}")


def test_what_cannot_be_imported_says_why(tmp_path):
    from transformers import BertConfig, CLIPTextConfig, Siglip2Config

    refused = [
        (Siglip2Config(), "NaFlex"), (BertConfig(), "whole models of the types.*text_encoder: hf/"),
        (CLIPTextConfig(), "text tower alone"),
    ]  # fmt: skip
    for number, (config, why) in enumerate(refused):
        config.save_pretrained(tmp_path / str(number))
        with pytest.raises(CheckpointError, match=why):
            velm.load(f"hf/{tmp_path / str(number)}")
    with pytest.raises(CheckpointError, match=r"no folder here.*cannot be fetched"):
        velm.load("hf/nobody/nothing")
    folder = save_clip(tmp_path / "act", hidden_act="relu")
    with pytest.raises(CheckpointError, match=r"activation is 'relu'; VELM's towers have"):
        velm.load(f"hf/{folder}")


def test_a_tokenizer_of_another_model_is_refused(folders, tmp_path):
    import shutil

    folder = shutil.copytree(folders("clip", **CLIP[0]), tmp_path / "other")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    for file in folders("siglip", version=2).glob("tokenizer*"):
        shutil.copy(file, folder)
    with pytest.raises(CheckpointError, match=r"tokenizer has .* tokens.* do not belong together"):
        velm.load(f"hf/{folder}")


def test_an_attention_dropout_is_refused(tmp_path):
    from transformers import CLIPModel

    folder = save_clip(tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder)
    model.config.vision_config.attention_dropout = 0.1
    randomise(model).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"attention_dropout is 0.1"):
        velm.load(f"hf/{folder}")
