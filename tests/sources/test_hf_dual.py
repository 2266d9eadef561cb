"""Dual encoders of transformers with text towers of other kinds: equal to the originals."""

from __future__ import annotations

import warnings
from pathlib import Path

import families
import foreign
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import velm
from velm import cli
from velm.losses.weighted import build_losses
from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput

CLOSE = {"rtol": 0.0, "atol": 1e-5}
SAVE = {
    "chinese_clip": families.save_chinese_clip,
    "altclip": families.save_altclip,
    "metaclip_2": families.save_metaclip,
    "vit_bert": families.save_vision_text,
    "clip_xlmr": lambda folder: families.save_vision_text(folder, "clip_vision_model", "xlm-roberta"),
}


class Both:
    """A model of transformers and VELM's pipeline of it.

    Attributes:
        texts: short, long, beyond the limit.
        tokens: of transformers' own tokenizer, padded and cut.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, SAVE[name](folder)
        self.texts = families.CHINESE if name == "chinese_clip" else families.CAPTIONS
        self.original = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokens = tokenizer(self.texts, padding=True, truncation=True, return_tensors="pt")
        self.pipeline = velm.load(f"hf/{folder}")

    def embeds(self, pixels: torch.Tensor, model: torch.nn.Module | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """VELM's embeddings of normalised pixels and of the texts, with gradients."""
        model = self.pipeline.model if model is None else model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a text is cut
            tokens, mask = self.pipeline.tokenize(self.texts)
        return model.embed_image(model.encode_image(pixels)), model.embed_text(model.encode_text(tokens, mask))


@pytest.fixture(scope="module", params=list(SAVE))
def both(request, tmp_path_factory) -> Both:
    return Both(request.param, tmp_path_factory.mktemp("dual") / request.param)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_embeddings_and_logits_are_the_originals(both, pixels):
    expected = both.original(**both.tokens, pixel_values=pixels)
    image, text = both.embeds(pixels)
    families.require_close("embeddings", (image, expected.image_embeds), (text, expected.text_embeds))
    families.require_close("logits", (both.pipeline.logit_scale * image @ text.T, expected.logits_per_image))


def test_a_text_does_not_depend_on_its_batch(both):
    with pytest.warns(UserWarning, match="are cut"):
        together = both.pipeline.embed_texts(both.texts)
    alone = torch.cat([both.pipeline.embed_texts([text]) for text in both.texts[:3]])
    torch.testing.assert_close(together[:3], alone, **CLOSE)


def test_loss_and_gradients_are_the_originals(both, pixels, tmp_path):
    expected = both.original(**both.tokens, pixel_values=pixels, return_loss=True).loss
    expected.backward()
    image, text = both.embeds(pixels)
    losses = build_losses({"contrastive": {}})
    losses["contrastive"].log_scale.data.copy_(both.original.logit_scale.data)
    batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(4))
    loss, _ = losses(VisionLanguageOutput(embeddings=JointEmbeddings(image, text)), batch, None, 1.0)
    loss.backward()
    families.require_close("loss", (loss, expected))
    torch.testing.assert_close(losses["contrastive"].log_scale.grad, both.original.logit_scale.grad, **CLOSE)
    families.require_gradients(both.original, both.folder, tmp_path / "gradients", both.pipeline.model)


def test_another_image_size_as_the_original_interpolates(both):
    pixels = torch.randn(2, 3, 48, 48)
    expected = both.original.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    image, _ = both.embeds(pixels)
    torch.testing.assert_close(image, torch.nn.functional.normalize(expected, dim=-1), **CLOSE)


def test_images_are_prepared_as_by_the_original(both):
    from transformers import AutoImageProcessor

    images = foreign.images(2)
    expected = AutoImageProcessor.from_pretrained(both.folder)(images, return_tensors="pt").pixel_values
    pixels = torch.stack([both.pipeline.transform(image) for image in images])
    model = both.pipeline.model
    ours = pixels * model.image_scale + model.image_shift
    assert float((ours - expected).abs().max()) <= 1.01 / 255 / 0.26  # at most one step of 255


def test_an_import_is_equal_and_needs_nothing_else(both, pixels, tmp_path):
    assert cli.main(["import", f"hf/{both.folder}", "--output", str(tmp_path / "model.ckpt")]) == 0
    away = both.folder.rename(both.folder.with_name("away"))
    try:
        again = velm.load(tmp_path / "model.ckpt")
    finally:
        away.rename(both.folder)
    for ours, others in zip(both.embeds(pixels), both.embeds(pixels, again.model), strict=True):
        assert torch.equal(ours, others)
    assert again.tokenizer.encode(both.texts[1]) == both.pipeline.tokenizer.encode(both.texts[1])
