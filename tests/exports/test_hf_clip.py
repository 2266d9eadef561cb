"""`velm export --format transformers`: CLIPModel and SiglipModel, there and back, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import foreign
import pytest
import torch
from PIL import Image
from round_trips import in_out_in, write_own

import velm
from velm.checkpoint import read_checkpoint
from velm.data.text.bpe import BPETokenizer, ByteTokenizer
from velm.errors import ExportError
from velm.exports.hf_readers import open_transformers

KINDS: list[Any] = [
    pytest.param("clip", {"eos": 49407}, marks=pytest.mark.slow), ("clip", {"eos": 2, "hidden_act": "gelu"}),
    ("siglip", {"version": 1}), pytest.param("siglip", {"version": 2}, marks=pytest.mark.slow),
]  # fmt: skip
SAVE: dict[str, Callable[..., Path]] = {"clip": foreign.save_clip, "siglip": foreign.save_siglip}


def pipeline_scores(folder: Path, labels: list[str]) -> torch.Tensor:
    """What transformers' zero-shot pipeline says of noise, in the order of the labels."""
    from transformers import pipeline

    image = foreign.images(1)[0]
    found = pipeline("zero-shot-image-classification", model=str(folder))(
        image, candidate_labels=labels, hypothesis_template="{}"
    )
    by_label = {row["label"]: row["score"] for row in found}
    return torch.tensor([[by_label[label] for label in labels]])


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_in_and_out_and_in_again(
    tmp_path: Path, kind: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if kind != "clip":
        request.getfixturevalue("in_this_process")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = SAVE[kind](tmp_path / "source", **options)
    made, _ = in_out_in(f"hf/{source}", tmp_path / "out", "transformers")
    assert made.kind == {"clip": "CLIPModel", "siglip": "SiglipModel"}[kind]
    assert {difference.name for difference in made.differences} == {"image_embeds", "text_embeds", "logits"}
    require_same_embeddings(open_transformers(made.folder), velm.load(f"hf/{source}"))
    if kind == "clip":
        require_same_scores(made.folder, f"hf/{source}")


def require_same_embeddings(found: Any, expected: velm.Pipeline) -> None:
    """Of what `--data` asks."""
    images = foreign.images(2)
    torch.testing.assert_close(found.embed_images(images), expected.embed_images(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.embed_texts(foreign.TEXTS[:2]), expected.embed_texts(foreign.TEXTS[:2]), atol=1e-5, rtol=0
    )


def require_same_scores(folder: Path, source: Any) -> None:
    labels = ["a dog", "two brown dogs run", "snow"]
    expected = velm.load(source).score(foreign.images(1), labels, kind="probability")
    torch.testing.assert_close(pipeline_scores(folder, labels), expected, atol=1e-5, rtol=0)


def own_checkpoint(folder: Path, tokenizer: Any, name: str, **changes: Any) -> Path:
    """A model of VELM's own parts in CLIP's form."""
    image = {"name": "vit", "dim": 32, "depth": 2, "heads": 4, "patch_size": 8, "positions": "learned",
             "position_grid": 4, "pooling": "class", "input_norm": True}  # fmt: skip
    text = {"name": "transformer", "dim": 16, "depth": 1, "heads": 2, "max_length": 24, "causal": True}
    config = {
        "image_encoder": image | changes.pop("image", {}),
        "text_encoder": {**text, "pooling": "last"} | changes.pop("text", {}),
        "decoder": None, "embed_dim": 8, "losses": {"contrastive": {}},
    } | changes.pop("model", {})  # fmt: skip
    length = config["text_encoder"]["max_length"]
    return write_own(folder, config, tokenizer, name, length, logit_scale=float(torch.tensor(2.0).exp()), **changes)


def trained_bpe() -> BPETokenizer:
    tokenizer = BPETokenizer(vocab_size=280)
    tokenizer.train(foreign.TEXTS)
    return tokenizer


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", ["bpe", pytest.param("byte", marks=pytest.mark.slow)])
def test_own_towers_and_tokenizers(tmp_path: Path, name: str) -> None:
    tokenizer = trained_bpe() if name == "bpe" else ByteTokenizer()
    path = own_checkpoint(tmp_path, tokenizer, name)
    made = velm.export(path, tmp_path / "out", format="transformers")
    assert made.kind == "CLIPModel"
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(made.folder)
    rows = [*range(4, tokenizer.vocab_size), 0, 1, 3, 2]
    for text in [*foreign.TEXTS, "  two  BLANKS ", "日本 🙂", ""]:
        assert [rows[number] for number in theirs(text).input_ids] == tokenizer.encode(text)
    assert torch.allclose(
        velm.load(f"hf/{made.folder}").embed_texts(["a dog"]), velm.load(path).embed_texts(["a dog"]), atol=1e-5
    )
    image = Image.fromarray(torch.zeros(40, 50, 3, dtype=torch.uint8).numpy())
    assert torch.allclose(velm.load(f"hf/{made.folder}").embed_images([image]), velm.load(path).embed_images([image]))


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_own_towers_in_the_form_of_siglip(tmp_path: Path) -> None:
    """The zero-shot pipeline fills texts to 64 tokens, whatever the model says."""
    path = own_checkpoint(
        tmp_path,
        ByteTokenizer(),
        "byte",
        image={"pooling": "map", "input_norm": False, "patch_bias": True, "activation": "gelu_tanh"},
        text={"pooling": "end", "causal": False, "fixed_length": 64, "max_length": 65, "reads_bos": False},
        model={"embed_dim": 32, "image_projection": "none", "text_projection": "affine"},
        logit_bias=-3.0,
    )
    made = velm.export(path, tmp_path / "out", format="transformers")
    assert made.kind == "SiglipModel"
    require_same_scores(made.folder, path)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"image": {"pooling": "mean"}}, r"image_encoder.pooling is 'mean', and CLIPModel has 'class'"),
    ({"image": {"input_norm": False, "output_norm": False}}, r"input_norm is False.*output_norm is False"),
    ({"image": {"position_grid": 3}}, r"position_grid is 3, and images of 32 pixels have 4 a side"),
    ({"text": {"causal": False}}, r"text_encoder.causal is False, and CLIPModel has True"),
    ({"model": {"image_encoder": {"name": "cnn", "dim": 16}}}, r"the image_encoder is 'cnn', and that of CLIPModel"),
    ({"model": {"text_projection": "affine"}}, r"text_projection is 'affine', and CLIPModel has 'linear'"),
    ({"transform": {"resize": "crop"}}, r"data.resize is 'crop'"),
    ({"transform": {"resize": "shortest", "crop_rounding": "even"}}, r"data.crop_rounding is 'even'"),
    ({"logit_bias": -10.0}, r"its loss learned a bias of the cosines \(sigmoid\), and CLIPModel has none"),
    ({"text": {"pooling": "end", "fixed_length": 24}}, r"SiglipModel cannot express.*learned no bias.*has one"),
]


@pytest.mark.parametrize(("changes", "why"), REFUSED)
def test_what_a_class_cannot_express_is_named(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    path = own_checkpoint(tmp_path, ByteTokenizer(), "byte", **{key: dict(v) if isinstance(v, dict) else v
                                                                for key, v in changes.items()})  # fmt: skip
    with pytest.raises(ExportError, match=rf"cannot express this model: .*{why}|{why}"):
        velm.export(path, tmp_path / "out", format="transformers")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_in_python_is_refused(write_checkpoint: Callable[..., Path]) -> None:
    content = read_checkpoint(write_checkpoint(decoder=None, losses={"contrastive": {}}))
    from velm.exports.hf_tokenizer import hub_tokenizer
    from velm.pipeline.loading import pipeline_of

    with pytest.raises(ExportError, match=r"its tokenizer is WordTokenizer, which is Python"):
        hub_tokenizer(pipeline_of(content).tokenizer)


def test_an_eos_that_is_a_mark_of_old_configs_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = families.save_metaclip(tmp_path / "source")
        with pytest.raises(ExportError, match=r"CLIPModel cannot express this model: the id of its eos is 2, by which"):
            velm.export(f"hf/{source}", tmp_path / "out", format="transformers")


def test_a_scale_that_was_limited_is_that_of_the_pipeline(tmp_path: Path) -> None:
    from dataclasses import replace

    from velm.exports.hf_clip import log_scale

    content = read_checkpoint(own_checkpoint(tmp_path, ByteTokenizer(), "byte"))
    assert log_scale(content).item() == pytest.approx(2.0)
    assert log_scale(replace(content, logit_scale=100.0)).exp().item() == pytest.approx(100.0)
