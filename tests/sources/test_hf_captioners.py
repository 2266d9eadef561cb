"""Captioners of transformers: logits, loss, gradients and captions are those of the originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers
from tiny_run import fit, tiny_config

import velm
from velm import cli
from velm.errors import CheckpointError
from velm.generation import GenerationConfig, generate
from velm.losses.weighted import build_losses
from velm.outputs import IGNORE, Batch

CLOSE = {"rtol": 0.0, "atol": 1e-5}
SAVE = {
    "blip": ("BlipForConditionalGeneration", families.save_blip),
    "git": ("GitForCausalLM", families.save_git),
    "vit_gpt2": ("VisionEncoderDecoderModel", families.save_encoder_decoder),
    "vit_bert": ("VisionEncoderDecoderModel", lambda folder: families.save_encoder_decoder(folder, "bert", width=32)),
}
TEXTS = ["a dog", "two brown dogs run over the grass", "a red dog on snow", "snow"]


class Both:
    """A captioner of transformers and VELM's pipeline of it."""

    def __init__(self, name: str, folder: Path) -> None:
        cls, save = SAVE[name]
        self.name, self.folder = name, save(folder)
        self.original: Any = getattr(transformers, cls).from_pretrained(folder, dtype=torch.float32).eval()
        self.pipeline = velm.load(f"hf/{folder}")
        self.model = self.pipeline.model

    def batch(self, pixels: torch.Tensor) -> Batch:
        tokens, mask = self.pipeline.tokenize(TEXTS)
        return Batch(images=pixels, tokens=tokens, mask=mask, image_ids=torch.arange(len(tokens)))

    def forward(self, batch: Batch) -> Any:
        """The original's output, with the loss, for the captions of a batch."""
        ids = batch.tokens.clone()
        labels = ids.masked_fill(~batch.mask, IGNORE)
        if self.name.startswith("vit"):
            return self.original(pixel_values=batch.images, labels=labels[:, 1:])
        if self.name == "blip":
            ids[:, 0] = self.original.config.text_config.bos_token_id
        return self.original(pixel_values=batch.images, input_ids=ids, attention_mask=batch.mask.long(), labels=labels)

    def captions(self, pixels: torch.Tensor, **options: Any) -> list[list[int]]:
        """Ids of VELM's captions, eos included."""
        ids = self.pipeline.captioner.token_ids()
        memory = self.model.memory(self.model.encode_image(pixels), None)
        found = generate(self.model.decoder, *memory, config=GenerationConfig(max_length=25, **options), **ids)
        return [until(row, self.pipeline.tokenizer.eos_id) for row in found.tokens[:, 0].tolist()]

    def expected(self, pixels: torch.Tensor, num_beams: int) -> list[list[int]]:
        ids = self.pipeline.captioner.token_ids()
        found = self.original.generate(
            pixel_values=pixels, num_beams=num_beams, max_length=26, do_sample=False, early_stopping=num_beams > 1,
            suppress_tokens=list(ids["suppress"]) or None,
        )  # fmt: skip
        return [until(row, self.pipeline.tokenizer.eos_id) for row in found[:, 1:].tolist()]


def until(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos) + 1] if eos in row else row


@pytest.fixture(scope="module", params=list(SAVE))
def both(request, tmp_path_factory) -> Both:
    return Both(request.param, tmp_path_factory.mktemp("captioner") / request.param)


@pytest.fixture
def pixels() -> torch.Tensor:
    return 3 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_logits_are_the_originals(both, pixels):
    batch = both.batch(pixels)
    expected = both.forward(batch).logits
    expected = expected[:, -batch.tokens.shape[1] :][:, : batch.tokens.shape[1] - 1]
    memory = both.model.memory(both.model.encode_image(pixels), None)
    logits = both.model.decoder.output_projection(both.model.decoder(batch.tokens[:, :-1], *memory))
    content = batch.mask[:, :-1] & batch.mask[:, 1:]
    families.require_close("logits", (logits[content], expected[content]))


def test_loss_and_gradients_are_the_originals(both, pixels, tmp_path):
    batch = both.batch(pixels)
    expected = both.forward(batch).loss
    expected.backward()
    loss, _ = build_losses({"captioning": {}})(both.model(batch, {"decoder"}), batch, None, 1.0)
    loss.backward()
    families.require_close("loss", (loss, expected))
    families.require_gradients(both.original, both.folder, tmp_path / "gradients", both.model)


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_the_originals(both, pixels, beams):
    """Those that end: of captions cut at max_length, transformers prefers the most probable, VELM one that ended."""
    captions = both.captions(pixels, num_beams=beams)
    assert captions == both.expected(pixels, beams)
    eos = both.pipeline.tokenizer.eos_id
    assert any(len(caption) > 2 for caption in captions)
    assert all(caption[-1] == eos for caption in captions)
    assert captions == [caption for image in pixels for caption in both.captions(image[None], num_beams=beams)]


@torch.no_grad()
def test_another_image_size_as_the_original_interpolates(both):
    pixels = torch.randn(2, 3, 48, 48)
    tokens, _ = both.pipeline.tokenize(TEXTS[:1] * 2)
    ids = tokens.clone()
    if both.name.startswith("vit"):
        more: dict[str, Any] = {"decoder_input_ids": ids}
        ids[:, 0] = both.original.config.decoder_start_token_id
    else:
        more = {"input_ids": ids}
        ids[:, 0] = both.original.config.text_config.bos_token_id if both.name == "blip" else ids[:, 0]
    expected = both.original(pixel_values=pixels, interpolate_pos_encoding=True, **more).logits[:, -ids.shape[1] :]
    memory = both.model.memory(both.model.encode_image(pixels), None)
    logits = both.model.decoder.output_projection(both.model.decoder(tokens, *memory))
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_an_import_captions_alike_and_needs_nothing_else(both, pixels, tmp_path):
    assert cli.main(["import", f"hf/{both.folder}", "--output", str(tmp_path / "model.ckpt")]) == 0
    away = both.folder.rename(both.folder.with_name("away"))
    try:
        again = velm.load(tmp_path / "model.ckpt")
    finally:
        away.rename(both.folder)
    images = [(image * 255).clamp(0, 255).byte().permute(1, 2, 0).numpy() for image in pixels]
    captions = again.caption(images, num_beams=2, max_length=12)
    assert captions == both.pipeline.caption(images, num_beams=2, max_length=12)
    assert not again.aligned
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, both.model.state_dict()[name]), name


def test_it_is_fine_tuned(both, tmp_path, capsys):
    config = tmp_path / "fit.yaml"
    config.write_text(
        f"model:\n  pretrained: hf/{both.folder}\n  losses: {{captioning: {{}}}}\n"
        "data:\n  dataset: {name: shapes, train_size: 8, val_size: 4, test_size: 4}\n  batch_size: 4\n"
        "trainer: {max_steps: 1, accelerator: cpu, enable_progress_bar: false, logger: false}\n",
        encoding="utf-8",
    )
    options = [f"--trainer.default_root_dir={tmp_path / 'run'}", "--model.validation.max_length=4"]
    assert fit(config, *options) == 0
    total = len(both.model.state_dict())
    assert f"Starts from the weights of hf/{both.folder}: {total} of {total} tensors." in capsys.readouterr().out
    tuned = velm.load(tmp_path / "run" / "last.ckpt")
    assert not torch.equal(tuned.model.decoder.output_projection.weight, both.model.decoder.output_projection.weight)
    assert tuned.model.decoder.start_id == both.model.decoder.start_id


def test_a_decoder_that_does_not_fit_is_refused(tmp_path, capsys):
    folder = families.save_git(tmp_path / "git")
    options = ["--model.decoder={name: git, config: {num_hidden_layers: 1}}", "--model.losses={captioning: {}}"]
    assert fit(tiny_config(tmp_path), f"--model.pretrained=hf/{folder}", *options) > 0
    said = capsys.readouterr().err
    assert f"The decoder of hf/{folder} does not fit this run's: " in said
    assert "model.decoder.config.num_hidden_layers is 1 here and 2 there" in said
    assert "or name another decoder, which then starts from scratch" in said


def test_another_tokenizer_is_refused(tmp_path, capsys):
    folder = families.save_blip(tmp_path / "blip")
    options = ["--data.tokenizer={name: word}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    config = tmp_path / "fit.yaml"
    config.write_text(f"model: {{pretrained: hf/{folder}, losses: {{captioning: {{}}}}}}\n", encoding="utf-8")
    dataset = "--data.dataset={name: shapes, train_size: 8, val_size: 4, test_size: 4}"
    assert fit(config, dataset, *options) > 0
    said = capsys.readouterr().err
    assert f"data.tokenizer is 'word', and the decoder of hf/{folder} reads the tokens of its own tokenizer" in said


def test_ids_that_the_tokenizer_does_not_know_are_never_written(tmp_path):
    pipeline = velm.load(f"hf/{families.save_blip(tmp_path / 'blip')}")
    known, decoder = pipeline.tokenizer.vocab_size, pipeline.model.decoder
    assert decoder.output_projection.out_features == known + 2
    with torch.no_grad():
        decoder.output_projection.bias[known:] += 100.0
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    (caption,) = pipeline.caption_candidates([image], max_length=4)[0]
    assert caption.log_prob < -90  # [ENC] is certain, and never written


def test_another_class_of_the_same_type_is_refused(tmp_path):
    folder = families.save_blip(tmp_path / "blip")
    path = folder / "config.json"
    path.write_text(path.read_text().replace("BlipForConditionalGeneration", "BlipForQuestionAnswering"))
    with pytest.raises(CheckpointError, match="are those of BlipForQuestionAnswering, and of this type VELM im"):
        velm.load(f"hf/{folder}")


def test_vectors_that_are_not_tied_as_the_config_says_are_refused(tmp_path):
    folder = families.save_encoder_decoder(tmp_path / "gpt2")
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder)
    model.decoder.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.decoder.lm_head.weight))
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="write `tie_word_embeddings: false`"):
        velm.load(f"hf/{folder}")


def test_a_tokenizer_with_another_eos_is_refused(tmp_path):
    folder = families.save_blip(tmp_path / "blip", sep_token_id=7)
    with pytest.raises(CheckpointError, match=r"captions end with the token 7, and eos of its tokenizer is 6"):
        velm.load(f"hf/{folder}")


def test_a_video_captioner_is_refused(tmp_path):
    folder = families.save_git(tmp_path / "git", num_image_with_embedding=6)
    with pytest.raises(CheckpointError, match="reads 6 frames of a video"):
        velm.load(f"hf/{folder}")
