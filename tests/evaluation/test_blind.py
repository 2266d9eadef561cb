"""`--blind` captions an image without content for every decoder, and changes no other metric."""

from __future__ import annotations

import json

import pytest

from velm.cli import main as velm
from velm.data.synthetic.shapes import Shapes
from velm.errors import PipelineError
from velm.evaluation.blind import blind_captions, empty_image
from velm.evaluation.evaluate import Extras, measure
from velm.evaluation.predictions import GeneratedCaption
from velm.metrics import caption_metrics
from velm.pipeline import load

DATA = {"dataset": {"name": "shapes", "test_size": 6, "train_size": 9, "image_size": 32}}


def test_the_command_line_writes_both(write_checkpoint, tmp_path):
    path = write_checkpoint(data=DATA)
    assert velm(["evaluate", str(path), "--output", str(tmp_path / "out"), "--max_length", "3", "--blind"]) == 0
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    pipeline, records = load(path), Shapes(test_size=6, train_size=9, image_size=32).split("test")
    plain = measure(pipeline, records, max_length=3)
    config = pipeline.generation_config(max_length=3)
    [[best, *_]] = pipeline.write(empty_image(pipeline), None, config)
    expected = caption_metrics([best.text] * 6, plain.predictions.captions.references)
    blind = {name.removeprefix("blind/"): value for name, value in stored.items() if name.startswith("blind/")}
    assert blind == pytest.approx(expected)
    assert {name: stored[name] for name in plain.metrics} == pytest.approx(plain.metrics)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f'<div class="blind">blind {stored["blind/caption/cider"]:.3f}</div>' in page
    assert "<code>blind/" not in page


def test_each_text_has_its_caption_of_the_empty_image(write_checkpoint):
    pipeline = load(write_checkpoint(memory=["image", "text"]))
    config, texts = pipeline.generation_config(max_length=4), ["a red circle", "a blue square", "a red circle"]
    rows = [GeneratedCaption("a", text, "", ()) for text in texts]
    together = blind_captions(pipeline, rows, config, batch_size=1)
    alone = [pipeline.write(empty_image(pipeline), pipeline.encode_texts([text]), config)[0][0].text for text in texts]
    assert together == alone


def test_a_decoder_of_texts_alone_is_refused(write_checkpoint):
    pipeline = load(write_checkpoint(memory=["text"]))
    with pytest.raises(PipelineError, match=r"this decoder attends over the text only .*leave out --blind"):
        measure(pipeline, Shapes(test_size=2).split("test"), extras=Extras(blind=True))
