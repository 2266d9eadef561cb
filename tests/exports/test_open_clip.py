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
from round_trips import in_out_in

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
}  # fmt: skip


def imported(folder: Path, name: str) -> Checkpoint:
    changes = dict(CONFIGS[name])
    config = {"embed_dim": 24, "vision_cfg": open_clips.VIT | changes.pop("vision_cfg", {}),
              "text_cfg": open_clips.TEXT | changes.pop("text_cfg", {}), **changes}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = open_clips.Original(folder, config)
        return open_source(f"open_clip/{original.folder}")


@pytest.mark.parametrize("name", ["clip", pytest.param("bias", marks=pytest.mark.slow)])
def test_in_and_out_and_in_again(tmp_path: Path, name: str) -> None:
    imported(tmp_path / "source", name)
    made, _ = in_out_in(f"open_clip/{tmp_path / 'source'}", tmp_path / "out", "open_clip")
    assert made.kind == "open_clip's CLIP"
    assert [difference.name for difference in made.differences] == ["image_embeds", "text_embeds", "logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = OpenClipModel(made.folder), velm.load(f"open_clip/{tmp_path / 'source'}")
    squares = foreign.images(2, size=(32, 32))
    torch.testing.assert_close(found.embed_images(squares), expected.embed_images(squares), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.embed_texts(["a dog"]), expected.embed_texts(["a dog"]), atol=1e-5, rtol=0)


def test_what_open_clip_cannot_express_is_named(tmp_path: Path) -> None:
    content = imported(tmp_path / "source", "clip")
    pipeline = pipeline_of(content)

    def refusal(checkpoint: Checkpoint, **transform: str) -> str:
        for key, value in transform.items():
            setattr(pipeline.transform, key, value)
        with pytest.raises(ExportError, match="open_clip's CLIP cannot express this model: ") as caught:
            write_open_clip(checkpoint, pipeline, tmp_path)
        return str(caught.value)

    def changed(part: str, **options: Any) -> Checkpoint:
        return replace(content, config=content.config | {part: content.config[part] | options})

    assert "image_encoder.pooling is 'mean'" in refusal(changed("image_encoder", pooling="mean"))
    assert "quick_gelu is of both" in refusal(changed("image_encoder", activation="gelu"))
    assert "image_projection is 'mlp'" in refusal(
        replace(content, config={**content.config, "image_projection": "mlp", "decoder": {"name": "transformer"}})
    )
    other = {"name": "clip", "state": {**content.tokenizer["state"], "clean": "whitespace"}}
    assert "cleans by 'whitespace', open_clip's by 'lower'" in refusal(replace(content, tokenizer=other))
    assert "no loss of it learned a scale" in refusal(replace(content, logit_scale=None))
    assert "it has a decoder" in refusal(
        replace(content, config={**content.config, "decoder": {"name": "transformer"}})
    )
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
