"""Every image encoder with every text encoder, and every decoder: sixteen pairs are learnt by heart."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from velm import registry
from velm.data.batches.collate import Collate
from velm.data.batches.samples import CaptionSamples
from velm.data.images.transforms import EvalTransform
from velm.data.synthetic.shapes import Shapes
from velm.data.text.word import WordTokenizer
from velm.generation import GenerationConfig, generate
from velm.losses.weighted import build_losses
from velm.metrics import recall_at_k
from velm.model import VisionLanguageModel, build_model
from velm.outputs import Batch

TINY_HF: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TINY_GPT2: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 96,
}  # fmt: skip

IMAGE = {
    "cnn": {"name": "cnn", "dim": 32},
    "vit": {"name": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 8},
    "torchvision": {"name": "torchvision/resnet18", "features": "layer2", "dim": 32},
    "timm": {"name": "timm/test_vit"},
    "hf": {"name": "hf/vit", "config": {**TINY_HF, "image_size": 32, "patch_size": 8}},
    "attentional": {
        "name": "attentional",
        "dim": 32,
        "queries": 9,
        "heads": 2,
        "encoder": {"name": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "pooling": "class"},
    },
}
TEXT = {
    "tanh": {"name": "rnn", "cell": "tanh", "dim": 32},
    "gru": {"name": "rnn", "cell": "gru", "dim": 32},
    "lstm": {"name": "rnn", "cell": "lstm", "dim": 32, "bidirectional": True},
    "transformer": {"name": "transformer", "dim": 32, "depth": 2, "heads": 2},
    "hf": {"name": "hf/bert", "config": {**TINY_HF, "max_position_embeddings": 64}},
}
SHARED: dict[str, Any] = {"name": "decoder"}
DECODER = {
    "rnn": {"name": "rnn", "dim": 48, "dropout": 0.0},
    "transformer": {"name": "transformer", "dim": 32, "depth": 2, "heads": 2},
    "hf": {"name": "hf/gpt2", "config": TINY_GPT2},
    "git": {"name": "git", "config": {**TINY_HF, "max_position_embeddings": 64}},
    "llm": {"name": "llm/llama", "config": TINY_LLAMA},
}
SHARING = {"name": "transformer", "dim": 32, "depth": 3, "unimodal_depth": 1, "heads": 2}
COMBINATIONS = [
    (image, text, list(DECODER)[number % len(DECODER)])
    for number, (image, text) in enumerate(itertools.product(IMAGE, TEXT))
] + [(image, "shared", "sharing") for image in IMAGE]
TEXT["shared"], DECODER["sharing"] = SHARED, SHARING  # a text encoder that is a part of its decoder


@pytest.fixture(scope="module")
def sixteen() -> tuple[Batch, WordTokenizer]:
    records = Shapes(train_size=16, val_size=1, test_size=1).split("train")
    tokenizer = WordTokenizer()
    tokenizer.train(text for record in records for text in record.texts)
    items = CaptionSamples(
        records, tokenizer=tokenizer, transform=EvalTransform(image_size=32, resize="squash"), captions="first"
    )
    return Collate(tokenizer.pad_id)([items[i] for i in range(16)]), tokenizer


def learn(model: VisionLanguageModel, batch: Batch, most: int = 600) -> None:
    """Train on one batch until the loss in eval mode, where batch norm reads what it has gathered, is small."""
    losses = build_losses({"contrastive": {"temperature": 0.1}, "captioning": {}})
    parameters = [*model.parameters(), *losses.parameters()]
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=20)
    for step in range(most):
        if step % 10 == 0:
            model.eval()
            with torch.no_grad():
                if losses(model(batch), batch)[0] < 0.02:
                    return
        model.train()
        loss, _ = losses(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


@pytest.mark.slow
@pytest.mark.parametrize(("image", "text", "decoder"), COMBINATIONS)
def test_sixteen_pairs_are_learnt_by_heart(
    image: str, text: str, decoder: str, sixteen: tuple[Batch, WordTokenizer]
) -> None:
    if image == "timm":
        pytest.importorskip("timm", reason="the extra 'timm' is not installed")
    batch, tokenizer = sixteen
    torch.manual_seed(0)
    model = build_model(
        {
            "image_encoder": IMAGE[image],
            "text_encoder": TEXT[text],
            "decoder": DECODER[decoder],
            "embed_dim": 32,
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
        }
    )
    learn(model, batch)
    model.eval()
    with torch.no_grad():
        output = model(batch)
        assert output.image_embeds is not None
        assert output.text_embeds is not None
        assert recall_at_k(output.image_embeds, output.text_embeds, torch.arange(16), k=1) == (1.0, 1.0)
        assert model.decoder is not None
        generated = generate(
            model.decoder, *model.memory(output.image, output.text), bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, config=GenerationConfig(max_length=24),
        )  # fmt: skip
    assert batch.tokens is not None
    written = [tokenizer.decode(tokens) for tokens in generated.tokens[:, 0].tolist()]
    assert written == [tokenizer.decode(tokens) for tokens in batch.tokens.tolist()]


def test_every_kind_of_encoder_and_decoder_is_in_the_list() -> None:
    def families(registered: registry.Registry) -> set[str]:
        entries = [entry for entry in registered.entries() if entry.distribution == "velm"]
        return {entry.name.removesuffix("/*") for entry in entries}

    assert {IMAGE[i]["name"].split("/")[0] for i, _, _ in COMBINATIONS} == families(registry.image_encoders)
    assert {TEXT[t]["name"].split("/")[0] for _, t, _ in COMBINATIONS} == families(registry.text_encoders)
    assert {DECODER[d]["name"].split("/")[0] for _, _, d in COMBINATIONS} == families(registry.decoders)
    assert {(i, d) for i, _, d in COMBINATIONS} == set(itertools.product(IMAGE, DECODER))
