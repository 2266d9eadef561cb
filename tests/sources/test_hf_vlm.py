"""Vision-language models of transformers: the same logits, loss, gradients and answers for their processors' inputs."""

from __future__ import annotations

import warnings

import families
import pytest
import torch
from tiny_run import fit
from vlm_cases import QUESTIONS, SAVE, Case

import velm
from velm import cli
from velm.data.text.template import Template
from velm.generation import GenerationConfig, generate


@pytest.fixture(params=list(SAVE))
def case(request, vlm_of) -> Case:
    return vlm_of(request.param)


def test_images_are_the_originals(case):
    pixels = case.inputs["pixel_values"].reshape(3, 3, 32, 32)
    model = case.pipeline.model
    ours = case.pixels(case.pipeline) * model.image_scale + model.image_shift
    torch.testing.assert_close(ours, pixels, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_and_loss_are_the_originals(case):
    (loss, logits), (expected_loss, expected) = case.ours(case.pipeline), case.expected()
    families.require_close("loss", (loss, expected_loss))
    families.require_close("logits", *zip(logits, expected, strict=True))


def test_gradients_are_the_originals(case, tmp_path):
    case.original.zero_grad()
    case.expected()[0].backward()
    case.pipeline.model.zero_grad()
    case.ours(case.pipeline)[0].backward()
    families.require_gradients(case.original, case.folder, tmp_path / "gradients", case.pipeline.model)


def test_greedy_answers_are_the_originals(case):
    ids = case.pipeline.captioner.token_ids()
    found = case.original.generate(
        **case.inputs, max_new_tokens=12, do_sample=False, suppress_tokens=list(ids["suppress"])
    )[:, case.inputs["input_ids"].shape[1] :]
    prefix = case.prefix(case.pipeline)
    config = GenerationConfig(max_length=12)
    ours = generate(case.pipeline.model.decoder, *prefix, config=config, **ids).tokens[:, 0]
    assert len({tuple(row) for row in ours.tolist()}) > 1
    for one, other in zip(ours.tolist(), found.tolist(), strict=True):
        length = one.index(ids["eos_id"]) + 1 if ids["eos_id"] in one else len(one)
        assert one[:length] == other[:length]


def test_the_template_is_what_the_processor_writes(case):
    before, after = case.pipeline.model.decoder.template.split("{image}")
    tokenize = case.tokenizer.backend_tokenizer
    for i, text in enumerate(QUESTIONS):
        for part, ids, mask in (
            (before, case.prompt.before, case.prompt.before_mask),
            (after.replace("{text}", text), case.prompt.after, case.prompt.after_mask),
        ):
            assert tokenize.encode(part, add_special_tokens=False).ids == ids[i][mask[i]].tolist()


def test_a_question_is_asked_as_the_processor_asks(case):
    template = Template(case.pipeline.model.decoder.template, case.pipeline.tokenizer)
    for i, text in enumerate(QUESTIONS):
        if text == text.strip():  # VELM strips texts
            before, after = template.prompt(text)
            assert before == case.prompt.before[i][case.prompt.before_mask[i]].tolist()
            assert after == case.prompt.after[i][case.prompt.after_mask[i]].tolist()


def test_answers_of_the_pipeline_are_the_originals(case):
    asked, images = [QUESTIONS[0], QUESTIONS[2], "dogs"], case.images
    inputs = case.process([case.question(text) for text in asked])
    suppress = list(case.pipeline.captioner.token_ids()["suppress"])
    found = case.original.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=suppress)
    expected = [case.pipeline.tokenizer.decode(row[inputs["input_ids"].shape[1] :]) for row in found]
    assert case.pipeline.caption(images, asked, max_length=8) == expected


def test_it_is_fine_tuned_on_questions(vlm_of, tmp_path):
    case, config = vlm_of("smolvlm"), tmp_path / "fit.yaml"
    config.write_text(
        f"model: {{pretrained: hf/{case.folder}, losses: {{captioning: {{}}}}, adapt: {{decoder: lora}}}}\n"
        "data:\n  dataset: {name: shapes_questions, train_size: 8, val_size: 4, test_size: 4}\n  batch_size: 4\n"
        "trainer: {max_steps: 1, accelerator: cpu, enable_progress_bar: false, logger: false}\n",
        encoding="utf-8",
    )
    run = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fit(config, f"--trainer.default_root_dir={run}", "--model.validation.max_length=4") == 0
    tuned, before = velm.load(run / "last.ckpt").model.state_dict(), case.pipeline.model.state_dict()
    changed = {name for name in tuned if not torch.equal(tuned[name], before[name])}
    assert any(name.startswith("decoder.model.layers.0.self_attn") for name in changed)
    assert "decoder.projector.map.weight" in changed
    assert "decoder.output_projection.weight" not in changed


def test_an_import_is_bit_equal_and_needs_nothing_else(case, tmp_path):
    assert cli.main(["import", f"hf/{case.folder}", "--output", str(tmp_path / "model.ckpt")]) == 0
    away = case.folder.rename(case.folder.with_name("away"))
    try:
        again = velm.load(tmp_path / "model.ckpt")
    finally:
        away.rename(case.folder)
    ours = case.pipeline.model.state_dict()
    assert again.model.state_dict().keys() == ours.keys()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, ours[name]), name
    with torch.no_grad():
        assert torch.equal(case.ours(again)[0], case.ours(case.pipeline)[0])
