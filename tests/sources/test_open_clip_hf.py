"""Text towers of transformers in open_clip's models, to 1e-5."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("open_clip", reason="the extra 'open_clip' is not installed")

from open_clip.loss import ClipLoss
from open_clips import VIT, Original, pixels, save_words, tokens_of
from transformers import AutoConfig

from velm.errors import CheckpointError
from velm.sources.open_clip_towers import read_towers

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "num_decoder_layers": 1}
M2M = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_layers": 1,
       "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "max_position_embeddings": 40}  # fmt: skip
ROBERTA = ("roberta", {**SIZES, "max_position_embeddings": 40}, "<s> $A </s>", ["<s>", "<pad>", "</s>"])
FAMILIES = {  # a model type, its config, the tokenizer's template and special tokens, and options of text_cfg
    "roberta, mlp": (*ROBERTA, {"hf_pooler_type": "mean_pooler"}),
    "roberta, linear": (*ROBERTA, {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "linear"}),
    "roberta, none": (*ROBERTA, {"hf_proj_type": None}),
    "bert": ("bert", SIZES, *ROBERTA[2:], {"hf_pooler_type": "cls_pooler"}),
    "mt5": ("mt5", T5, "$A </s>", ["<pad>", "</s>"], {"hf_pooler_type": "mean_pooler"}),
    "nllb": ("m2m_100", M2M, "eng_Latn $A </s>", ["<s>", "<pad>", "</s>", "eng_Latn"],
             {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}),
}  # fmt: skip


def folder_of(folder, family):
    """A folder with the config and the tokenizer, and a model_cfg that names it."""
    kind, config, template, specials, options = FAMILIES[family]
    tokenizer = save_words(folder, template, specials)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ids, **config).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False,
            "context_length": 12, **options}  # fmt: skip
    embed_dim = 32 if options.get("hf_proj_type", "mlp") is None else 24
    return {"embed_dim": embed_dim, "vision_cfg": VIT, "text_cfg": text}


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_loss_and_gradients(family, tmp_path):
    original = Original(tmp_path / "model", folder_of(tmp_path / "text", family))
    imported, images = original.load(), pixels(32)
    image, text = original.model.encode_image(images, True), original.model.encode_text(tokens_of(original), True)
    for ours, theirs in zip(imported.embeds(images), (image, text), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=0)
    loss = ClipLoss()(image, text, original.model.logit_scale.exp())
    loss.backward()
    torch.testing.assert_close(imported.loss(images)["contrastive"], loss, atol=1e-5, rtol=0)
    assert imported.largest_difference(original.gradients(imported.tokenizer.vocab_size)) < 1e-5


def test_a_written_checkpoint_needs_neither_folder(tmp_path):
    import shutil

    import velm
    from velm.checkpoint import build_from_checkpoint, read_checkpoint
    from velm.commands.import_model import main

    original = Original(tmp_path / "model", folder_of(tmp_path / "text", "roberta, mlp"))
    imported = original.load()
    assert main([f"open_clip/{tmp_path / 'model'}", "--output", str(tmp_path / "model.ckpt")]) == 0
    shutil.rmtree(tmp_path / "text")
    shutil.rmtree(tmp_path / "model")
    again = build_from_checkpoint(read_checkpoint(tmp_path / "model.ckpt"))
    tokens, mask = imported.tokens()
    assert torch.equal(again.encode_text(tokens, mask).pooled, imported.model.encode_text(tokens, mask).pooled)
    assert velm.load(tmp_path / "model.ckpt").embed_texts(["a dog"]).shape == (1, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_pooler_type": "max_pooler"}, "hf_pooler_type is 'max_pooler'"),
        ({"hf_proj_type": None}, "hf_proj_type is None between a width of 32 and embed_dim 24"),
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, "strips"),
    ],
)
def test_what_velm_lacks_is_named(change, message, tmp_path):
    config = folder_of(tmp_path, "roberta, mlp")
    with pytest.raises(ValueError, match=message):
        read_towers({**config, "text_cfg": {**config["text_cfg"], **change}}, None)


def test_a_hub_id_without_network_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    original = Original(tmp_path / "model", folder_of(tmp_path / "text", "roberta, mlp"))
    original.config["text_cfg"] |= {"hf_model_name": "nobody/nothing", "hf_tokenizer_name": "nobody/nothing"}
    original.write(original.folder, original.model.state_dict())
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        original.load()
