"""`velm export --format open_clip`: open_clip's CLIP, there and back, bit for bit."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("open_clip")
import foreign
import open_clips
from round_trips import in_out_in, write_own

import velm
from velm.checkpoint import Checkpoint
from velm.errors import ExportError
from velm.exports.open_clip import write_open_clip
from velm.exports.open_clip_reader import OpenClipModel
from velm.pipeline.loading import pipeline_of
from velm.sources import open_source

CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"quick_gelu": True},
    "bias": {"init_logit_bias": -10.0, "vision_cfg": {"no_ln_pre": True, "act_kwargs": {"approximate": "tanh"}},
             "text_cfg": {"norm_kwargs": {"eps": 1e-6}}},
    "affine": {"text_cfg": {"proj_bias": True}, "custom_text": True},
    "bidirectional": {"text_cfg": {"no_causal_mask": True}},
    "timm token": {"vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None}},
    "timm map": {"embed_dim": 96, "custom_text": True, "init_logit_bias": -10.0,
                 "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}},
    "timm mlp": {"vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp"}},
    "coca": {"embed_dim": 32, "custom_text": True,
             "vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 9,
                            "output_tokens": True},
             "text_cfg": {"context_length": 16, "embed_cls": True, "output_tokens": True},
             "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}},
    "coca without a pooler": {
        "embed_dim": 32, "custom_text": True, "vision_cfg": {"output_tokens": True},
        "text_cfg": {"context_length": 16, "embed_cls": True, "output_tokens": True, "width": 64},
        "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 1}},
}  # fmt: skip
FAST = ("clip", "timm token", "coca")


def imported(folder: Path, name: str) -> Checkpoint:
    changes = dict(CONFIGS[name])
    vision = changes.pop("vision_cfg", {})
    vision = {"image_size": 160, **vision} if "timm_model_name" in vision else open_clips.VIT | vision
    config = {"embed_dim": 24, "vision_cfg": vision,
              "text_cfg": open_clips.TEXT | changes.pop("text_cfg", {}), **changes}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = open_clips.Original(folder, config)
        return open_source(f"open_clip/{original.folder}")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CONFIGS]
)
def test_in_and_out_and_in_again(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    if name != "clip":
        request.getfixturevalue("in_this_process")
    imported(tmp_path / "source", name)
    made, _ = in_out_in(f"open_clip/{tmp_path / 'source'}", tmp_path / "out", "open_clip")
    assert made.kind == f"open_clip's {'CoCa' if 'coca' in name else 'CLIP'}"
    names = [difference.name for difference in made.differences]
    assert names == ["image_embeds", "text_embeds", "logits", *(["log_probs"] if "coca" in name else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = OpenClipModel(made.folder), velm.load(f"open_clip/{tmp_path / 'source'}")
    squares = foreign.images(2, size=(expected.transform.image_size,) * 2)
    torch.testing.assert_close(found.embed_images(squares), expected.embed_images(squares), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.embed_texts(["a dog"]), expected.embed_texts(["a dog"]), atol=1e-5, rtol=0)
    if expected.writes:
        assert found.caption(squares, max_length=9) == expected.caption(squares, max_length=9)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_texts_as_siglip_with_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    open_clips.save_words(tmp_path / "source", "$A </s>", ["<pad>", "</s>"])
    text = open_clips.TEXT | {"vocab_size": 16, "context_length": 12, "no_causal_mask": True, "pool_type": "last",
            "proj_bias": True, "hf_tokenizer_name": str(tmp_path / "source")}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = {"embed_dim": 24, "init_logit_bias": -10.0, "custom_text": True, "vision_cfg": open_clips.VIT}
        open_clips.Original(tmp_path / "source", config | {"text_cfg": text})
    made, _ = in_out_in(f"open_clip/{tmp_path / 'source'}", tmp_path / "out", "open_clip")
    assert (made.folder / "tokenizer.json").is_file()


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("pooling", "projection"), [("mean", "mlp"), ("first", "linear"), ("pooler", "mlp")])
def test_a_text_model_of_transformers_by_its_name(tmp_path: Path, pooling: str, projection: str) -> None:
    folder = foreign.save_bert(tmp_path / "text")
    tokenizer: Any = velm.tokenizers.build({"name": f"hf/{folder}", "clean": "whitespace"})
    image = {"name": "vit", "dim": 32, "depth": 1, "heads": 4, "patch_size": 8, "positions": "learned",
             "position_grid": 4, "pooling": "class"}  # fmt: skip
    config = {"image_encoder": image, "text_encoder": {"name": f"hf/{folder}", "pooling": pooling}, "decoder": None,
              "embed_dim": 24, "text_projection": projection, "losses": {"contrastive": {}}}  # fmt: skip
    path = write_own(tmp_path, config, tokenizer, f"hf/{folder}", 32, logit_scale=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = velm.export(path, tmp_path / "out", format="open_clip")
        again = velm.load(f"open_clip/{made.folder}")
    expected = velm.load(path).embed_texts(["a dog", "image number 3"])
    torch.testing.assert_close(again.embed_texts(["a dog", "image number 3"]), expected, atol=1e-5, rtol=0)
    content = open_source(path)
    changed = {**content.config["text_encoder"], "name": "hf/bert", "pooling": "last"}
    with pytest.raises(ExportError, match=r"pooling is 'last'.*by its name on the hub, and hf/bert is none that is h"):
        write_open_clip(replace(content, config={**content.config, "text_encoder": changed}), velm.load(path), tmp_path)


def test_what_open_clip_cannot_express_is_named(tmp_path: Path) -> None:
    content = imported(tmp_path / "source", "clip")
    pipeline = pipeline_of(content)

    def refusal(checkpoint: Checkpoint, **transform: str) -> str:
        for key, value in transform.items():
            setattr(pipeline.transform, key, value)
        with pytest.raises(ExportError, match=r"open_clip's (CLIP|CoCa) cannot express this model: ") as caught:
            write_open_clip(checkpoint, pipeline, tmp_path)
        return str(caught.value)

    def changed(part: str, **options: Any) -> Checkpoint:
        return replace(content, config=content.config | {part: content.config[part] | options})

    assert "image_encoder.pooling is 'mean'" in refusal(changed("image_encoder", pooling="mean"))
    assert "quick_gelu is of both" in refusal(changed("image_encoder", activation="gelu"))
    assert "image_projection is 'mlp'" in refusal(
        replace(content, config={**content.config, "image_projection": "mlp"})
    )
    other = {"name": "clip", "state": {**content.tokenizer["state"], "clean": "whitespace"}}
    assert "cleans by 'whitespace', open_clip's by 'lower'" in refusal(replace(content, tokenizer=other))
    assert "no loss of it learned a scale" in refusal(replace(content, logit_scale=None))
    named = refusal(replace(content, config={**content.config, "decoder": {"name": "transformer"}}))
    assert "decoder.alternating is False, and open_clip's CoCa has True" in named
    assert "the text_encoder is 'transformer', and that of open_clip's CoCa is a decoder" in named
    pipeline.tokenizer = velm.tokenizers.build({"name": "byte"})
    named = refusal(replace(content, tokenizer={"name": "byte", "state": {}}))
    assert "its tokenizer is 'byte', and open_clip's CLIP reads texts by 'clip'" in named
    assert "data.crop_rounding is 'down'" in refusal(content, crop_rounding="down")
    named = refusal(content, resize="crop", interpolation="lanczos")
    assert "data.resize is 'crop'" in named
    assert "'lanczos'" in named


def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from velm.errors import MissingPackageError

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'velm\[open_clip\]'"):
        OpenClipModel(tmp_path)
