"""open_clip's own towers, to 1e-5; what VELM lacks is refused by name."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("open_clip", reason="the extra 'open_clip' is not installed")

from open_clip.loss import ClipLoss
from open_clip.model import resize_pos_embed
from open_clips import TEXT, VIT, Original, pixels, save_words, tokens_of

from velm.errors import CheckpointError
from velm.sources import open_source
from velm.sources.open_clip_towers import read_towers

CONFIG = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": {**TEXT, "context_length": 16}}
VARIANTS = {  # changes of the top, of vision_cfg and of text_cfg
    "CLIP": ({}, {}, {}),
    "OpenAI's activation": ({"quick_gelu": True, "custom_text": True}, {}, {}),
    "no first norm": ({"custom_text": True}, {"no_ln_pre": True, "mlp_ratio": 2.5}, {"proj_bias": True}),
    "no projection": ({"embed_dim": 32, "custom_text": True}, {}, {"proj_type": "none", "norm_kwargs": {"eps": 1e-3}}),
}


def changed(top, vision, text):
    return {**CONFIG, **top, "vision_cfg": {**VIT, **vision}, "text_cfg": {**CONFIG["text_cfg"], **text}}


def require_equal(original, images):
    imported = original.load()
    image, text = original.model.encode_image(images, True), original.model.encode_text(tokens_of(original), True)
    for ours, theirs in zip(imported.embeds(images), (image, text), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=0)
    loss = ClipLoss()(image, text, original.model.logit_scale.exp())
    loss.backward()
    torch.testing.assert_close(imported.loss(images)["contrastive"], loss, atol=1e-5, rtol=0)
    assert imported.largest_difference(original.gradients(imported.tokenizer.vocab_size)) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_loss_and_gradients(variant, tmp_path):
    require_equal(Original(tmp_path, changed(*VARIANTS[variant])), pixels(32))


@pytest.mark.parametrize("pad", ["</s>", "<s>"])  # SigLIP pads with eos, SigLIP 2 with a token of its own
def test_siglips_texts_are_filled_as_its_tokenizer_pads_and_pooled_at_their_last_position(tmp_path, pad):
    words = tmp_path / "words"
    save_words(words, "$A </s>", ["<s>", "</s>"], pad=pad)
    text = {"hf_tokenizer_name": str(words), "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
            "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}, "vocab_size": 40}  # fmt: skip
    require_equal(Original(tmp_path / "model", changed({"custom_text": True}, {}, text)), pixels(32))


def test_patch_dropout_acts_in_training_as_there():
    towers = read_towers(changed({}, {"patch_dropout": 0.5}, {}), None)
    assert towers.image["patch_dropout"] == 0.5


@torch.no_grad()
def test_another_image_size_resizes_positions_as_open_clip(tmp_path):
    original = Original(tmp_path / "small", CONFIG)
    larger, images = Original(tmp_path / "large", changed({}, {"image_size": 56}, {})), pixels(56)
    state = dict(original.model.state_dict())
    resize_pos_embed(state, larger.model)
    larger.model.load_state_dict(state)
    ours, _ = original.load().embeds(images)
    torch.testing.assert_close(ours, larger.model.encode_image(images, normalize=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("top", "vision", "text", "message"),
    [
        ({}, {"layers": [3, 4, 6, 3]}, {}, "modified ResNet"),
        ({}, {"qk_norm": True}, {}, "vision_cfg has qk_norm = True"),
        ({}, {}, {"scale_heads": True}, "text_cfg has scale_heads = True"),
        ({}, {"ls_init_value": 1e-4}, {}, "vision_cfg has ls_init_value"),
        ({}, {"pool_type": "avg"}, {}, "pools by 'avg'"),
        ({}, {}, {"pool_type": "first"}, "pools by 'first'"),
        ({}, {}, {"embed_cls": True}, "embed_cls"),
        ({}, {}, {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}}, "CLIPA"),
        ({}, {}, {"tokenizer_mode": "clips"}, "tokenizer_mode"),
    ],
)
def test_what_velm_lacks_is_named(top, vision, text, message):
    with pytest.raises(ValueError, match=message):
        read_towers(changed(top, vision, text), None)


def test_half_a_state_dict_and_leftovers_name_tensors(tmp_path):
    original = Original(tmp_path, CONFIG)
    state = dict(original.model.state_dict())
    original.write(tmp_path, {name: t for name, t in state.items() if "resblocks.1" not in name})
    with pytest.raises(CheckpointError, match=r"its weights lack 'visual.transformer.resblocks.1"):
        open_source(f"open_clip/{tmp_path}")
    original.write(tmp_path, {**state, "visual.attn_pool.query": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"1 of its weights have no place .*visual.attn_pool.query"):
        open_source(f"open_clip/{tmp_path}")


def test_names_that_are_not_there(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    for name, message in {
        str(tmp_path): "has no weights",
        str(tmp_path / "nowhere"): "there is no folder or file",
        "ViT-B-32@nothing": "has no weights 'nothing' of ViT-B-32",
        "ViT-B-33@openai": "no architecture 'ViT-B-33'",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            open_source(f"open_clip/{name}")
