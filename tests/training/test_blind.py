"""The metrics without the image are those of an image whose normalised pixels are zero, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.training.test_validation import make_data
from velm.errors import ConfigError
from velm.evaluation.blind import empty_image
from velm.losses.weighted import build_losses
from velm.model import build_model
from velm.outputs import EncodedImages
from velm.pipeline import Pipeline
from velm.training.blind import BlindScores, blind_scores, is_blind_measured
from velm.training.config import ValidationConfig, WatchConfig
from velm.training.monitor.alarms import Alarms
from velm.training.monitor.progress import without_image
from velm.training.validation import SplitScores

LLAMA = {
    "name": "llm/llama",
    "config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
}
TRANSFORMER = {"name": "transformer", "dim": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def data():
    return make_data()


def make_scores(data, decoder=TRANSFORMER, memory=("image",), **config) -> SplitScores:
    torch.manual_seed(0)
    model = build_model(
        {
            "image_encoder": {"name": "cnn", "dim": 16, "widths": [8]},
            "text_encoder": {"name": "rnn", "dim": 12},
            "decoder": decoder,
            "losses": {"contrastive": None, "captioning": None},
            "embed_dim": 8,
            "vocab_size": data.vocab_size,
            "pad_id": data.tokenizer.pad_id,
            "memory": list(memory),
        }
    )
    pipeline = Pipeline(model=model, tokenizer=data.tokenizer, transform=data.eval_transform, max_length=24)
    losses = build_losses({"contrastive": None, "captioning": {"weight": 2.0}})
    return SplitScores(pipeline, data.records("val"), losses, ValidationConfig(captions=3, max_length=5, **config))


def blind_of(scores: SplitScores) -> BlindScores:
    found = blind_scores(scores)
    assert found is not None
    return found


@pytest.mark.parametrize("decoder", [TRANSFORMER, LLAMA])
@pytest.mark.parametrize("memory", [("image",), ("image", "text")])
def test_it_is_a_validation_of_empty_images(data, decoder, memory):
    scores = make_scores(data, decoder, memory, blind=True)
    blind, by_hand = blind_of(scores), blind_of(scores)
    for batch in data.val_dataloader():
        blind.update(batch)
        SplitScores.update(by_hand, replace(batch, images=torch.zeros(batch.images.shape)))
    found, expected = blind.compute(), by_hand.compute()
    assert set(found) == {"blind/captioning", *(name for name in found if name.startswith("blind/caption/"))}
    assert found == pytest.approx(expected, abs=1e-5)
    assert sorted(blind.captions) == [0, 1, 2]
    assert blind.captions == by_hand.captions
    if memory == ("image",):
        assert len(set(blind.captions.values())) == 1


def test_pixels_are_not_read_so_cached_features_do(data):
    scores = make_scores(data, blind=True)
    pixels, features = blind_of(scores), blind_of(scores)
    for batch in data.val_dataloader():
        pixels.update(batch)
        encoded = scores.pipeline.model.encode_image(batch.images)
        cached = EncodedImages(encoded.features.half() * 9, encoded.pooled.half(), None, encoded.grid)
        features.update(replace(batch, images=None, encoded=cached))
    assert features.compute() == pixels.compute()


def test_the_mean_colour_has_no_content(data):
    pipeline = make_scores(data).pipeline
    mean = torch.tensor(pipeline.model.image_encoder.image_mean).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    colour = (mean * 255 * pipeline.model.image_scale + pipeline.model.image_shift).float()
    seen = pipeline.model.encode_image(colour)
    torch.testing.assert_close(empty_image(pipeline).features, seen.features, atol=1e-5, rtol=0)


def test_prefix_decoders_are_measured_unless_told_otherwise(data):
    prefix, other = make_scores(data, LLAMA).pipeline.model, make_scores(data).pipeline.model
    assert [is_blind_measured(prefix, option) for option in (None, True, False)] == [True, True, False]
    assert [is_blind_measured(other, option) for option in (None, True, False)] == [False, True, False]
    assert blind_scores(make_scores(data)) is None


def test_a_decoder_without_an_image_has_nothing_to_miss(data):
    model = make_scores(data, memory=["text"]).pipeline.model
    assert not is_blind_measured(model, None)
    with pytest.raises(ConfigError, match=r"blind is true, .* no decoder of this model attends over the image"):
        is_blind_measured(model, True)


def alarms_of(folder, losses: list[tuple[float, float]], **options) -> list[str]:
    alarms = Alarms(folder)
    task = SimpleNamespace(losses={"captioning": None}, watch_config=WatchConfig(**options))
    for step, (value, blind) in enumerate(losses):
        metrics = {"val/captioning": torch.tensor(value), "val/blind/captioning": torch.tensor(blind)}
        trainer = SimpleNamespace(
            callback_metrics=metrics, current_epoch=step, global_step=step, is_global_zero=True, loggers=[]
        )
        alarms._judge_blind(trainer, task)
    return alarms.file.read_text(encoding="utf-8").splitlines() if alarms.file.exists() else []


@pytest.mark.filterwarnings("ignore:Alarm")
def test_an_image_that_changes_nothing_is_an_alarm(tmp_path):
    said = alarms_of(tmp_path / "a", [(3.0, 3.01), (2.5, 2.51), (2.2, 2.6)])
    assert said[0].startswith("epoch 1 step 1: the captioning loss of the validation is 2.500, and 2.510 with an image")
    assert said[1] == "epoch 2 step 2: captioning without the image: well again."
    assert alarms_of(tmp_path / "b", [(3.0, 3.01), (2.5, 2.6), (2.4, 2.41)]) == []
    assert alarms_of(tmp_path / "c", [(3.0, 3.01), (2.5, 2.51)], blind=0) == []


def test_the_line_of_a_validation_has_both():
    metrics = {"val/caption/cider": torch.tensor(0.5), "val/blind/caption/cider": torch.tensor(0.125)}
    assert without_image(metrics) == "  cider 0.500, without the image 0.125"
    assert without_image({"val/caption/cider": torch.tensor(0.5)}) == ""
