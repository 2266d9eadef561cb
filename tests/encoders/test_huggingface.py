"""Laws of the transformers bridges for encoders: tiny models with random weights, folders written by the tests."""

from __future__ import annotations

import copy
import json
import shutil
import socket

import pytest
import torch
import transformers

from velm.encoders.huggingface import HFImageEncoder, HFTextEncoder
from velm.pretrained.weights import skip_pretrained
from velm.testing import check_image_encoder, check_text_encoder

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**SIZES, "image_size": 32, "patch_size": 16}
TEXT = {**SIZES, "max_position_embeddings": 40}
CLIP = {"vision_config": VISION, "text_config": {**TEXT, "vocab_size": 32, "eos_token_id": 3, "bos_token_id": 2}}
IMAGE_MODELS = {
    "vit": VISION,
    "clip_vision_model": VISION,
    "siglip_vision_model": VISION,
    "dinov2": VISION,
    "dinov2_with_registers": VISION,
    "clip": CLIP,
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}
TEXT_MODELS = {
    "bert": TEXT,
    "roberta": TEXT,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "clip_text_model": TEXT,
    "siglip_text_model": TEXT,
    "clip": CLIP,
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def clip_folder(tmp_path):
    folder = tmp_path / "clip"
    transformers.CLIPModel(transformers.CLIPConfig(**copy.deepcopy(CLIP))).half().save_pretrained(folder)
    numbers = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    return folder


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        *((n, "own") for n in IMAGE_MODELS),
        ("clip_vision_model", "mean"),
        ("siglip_vision_model", "mean"),
        ("vit", "pooler"),
    ],
)
def test_image_encoders_keep_the_contract(name, pooling):
    report = check_image_encoder(
        lambda: HFImageEncoder(model_name=name, config=IMAGE_MODELS[name], pooling=pooling), image_size=32
    )
    assert report.ok, str(report)


@pytest.mark.parametrize(("name", "pad_id"), [*((name, 3) for name in TEXT_MODELS), ("roberta", 0)])
def test_text_encoders_keep_the_contract(name, pad_id):
    report = check_text_encoder(
        lambda: HFTextEncoder(model_name=name, config=TEXT_MODELS[name], vocab_size=32, pad_id=pad_id), pad_id=pad_id
    )
    assert report.ok, str(report)


def test_class_token_is_listed_where_a_captioner_reads_it():
    torch.manual_seed(0)
    plain = HFImageEncoder(model_name="vit", config=VISION).eval()
    encoder = HFImageEncoder(model_name="vit", config=VISION, class_in_features=True).eval()
    encoder.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 48)
    expected, output = plain(images), encoder(images)
    assert output.grid is None
    assert torch.equal(output.features, torch.cat([expected.pooled[:, None], expected.features], dim=1))


def test_features_of_a_block_depend_on_no_later_one():
    encoder = HFImageEncoder(model_name="vit", config={**VISION, "num_hidden_layers": 3}, feature_layer=2).train()
    images = torch.randn(2, 3, 32, 32)
    output = encoder(images)
    hidden = encoder.model(images, output_hidden_states=True).hidden_states[2]
    assert torch.equal(output.features, hidden[:, 1:])
    assert torch.equal(output.pooled, hidden[:, 0])
    (output.features.sum() + output.pooled.sum()).backward()
    for name, parameter in encoder.named_parameters():  # DDP raises on trained ones without a gradient
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.requires_grad != any(
            part in name for part in ("layer.2.", "layers.2.", "layernorm.", "pooler")
        )


def test_a_pooling_layer_is_used_where_asked_for():
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(4, 32, (2, 6))
    image = HFImageEncoder(model_name="vit", config=VISION, pooling="pooler").eval()
    assert torch.equal(image(images).pooled, image.model(images).pooler_output)
    text = HFTextEncoder(model_name="bert", config=TEXT, vocab_size=32, pooling="pooler", dim=8).eval()
    output = text(tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert torch.equal(output.pooled, text.projection(text.model(tokens).pooler_output))
    assert "model.pooler.dense.weight" in text.state_dict()


def test_class_token_is_pooled_not_listed():
    encoder = HFImageEncoder(model_name="vit", config=VISION).eval()
    images = torch.randn(2, 3, 32, 48)
    raw = encoder.model(images, interpolate_pos_encoding=True).last_hidden_state
    output = encoder(images)
    assert output.grid == (2, 3)
    assert torch.equal(output.features, raw[:, 1:])
    assert torch.equal(output.pooled, raw[:, 0])


@pytest.mark.parametrize(
    ("name", "mean"), [("vit", 0.5), ("siglip_vision_model", 0.5), ("clip_vision_model", 0.48145466), ("dinov2", 0.485)]
)
def test_normalisation_is_the_familys(name, mean):
    encoder = HFImageEncoder(model_name=name, config=VISION)
    assert encoder.image_mean[0] == mean
    assert HFImageEncoder(model_name=name, config=VISION, image_mean=[0.0, 0.0, 0.0]).image_mean == (0.0, 0.0, 0.0)


def test_vision_tower_from_a_folder_of_a_whole_clip(clip_folder, no_network):
    encoder = HFImageEncoder(model_name=str(clip_folder), dim=8).eval()
    whole = transformers.CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = whole.vision_model(images)
    assert encoder.model.dtype == torch.float32
    assert torch.allclose(encoder.model(images).pooler_output, expected.pooler_output, atol=1e-6)
    assert encoder.image_mean == (0.1, 0.2, 0.3)
    assert encoder.image_std == (0.4, 0.5, 0.6)


def test_text_tower_from_a_folder_of_a_whole_clip(clip_folder, no_network):
    encoder = HFTextEncoder(model_name=str(clip_folder), vocab_size=33, pad_id=32).eval()  # pad was added
    whole = transformers.CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    tokens = torch.tensor([[2, 9, 8, 3], [2, 9, 3, 32]])
    output = encoder(tokens, tokens != 32)
    expected = whole.text_model(tokens.clamp(max=31)).pooler_output  # at the first eos
    assert torch.allclose(output.pooled, expected, atol=1e-6)
    assert encoder.portable_config["config"]["vocab_size"] == 33


def test_roberta_numbers_positions_as_it_was_trained(tmp_path, no_network):
    config = transformers.RobertaConfig(**TEXT, vocab_size=32, pad_token_id=1)
    model = transformers.RobertaModel(config).eval()
    model.save_pretrained(tmp_path)
    tokens = torch.tensor([[0, 5, 6, 2, 1, 1]])
    expected = model(tokens, attention_mask=(tokens != 1).long()).last_hidden_state
    encoder = HFTextEncoder(model_name=str(tmp_path), vocab_size=32, pad_id=1).eval()
    assert torch.allclose(encoder(tokens, tokens != 1).features[:, :4], expected[:, :4], atol=1e-6)


@pytest.mark.parametrize("pad_id", [0, 32])
def test_siglip_text_is_filled_without_a_mask(pad_id):
    """The padding, which may be eos, is attended over, and the last position is pooled; there is no bos."""
    from transformers import SiglipTextModel

    encoder = HFTextEncoder(model_name="siglip_text_model", config=TEXT | {"vocab_size": 32, "pad_token_id": 1},
                            vocab_size=32, pad_id=pad_id).eval()  # fmt: skip
    original = SiglipTextModel(encoder.model.config).eval()
    original.load_state_dict({**encoder.model.state_dict(), **renamed_head(encoder)})
    fill = 0 if pad_id == 0 else 1  # 32 is an id that the tokenizer made: the model does not know it
    tokens = torch.tensor([[31, 5, 6, 7, 1], [31, 9, 1, pad_id, pad_id]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    length = encoder.model.config.max_position_embeddings
    ids = torch.full((2, length), fill)
    ids[0, :4], ids[1, :2] = tokens[0, 1:], tokens[1, 1:3]
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens, mask).pooled, original(input_ids=ids).pooler_output)


def renamed_head(encoder: HFTextEncoder) -> dict[str, torch.Tensor]:
    return {f"head.{name}": tensor for name, tensor in encoder.head.state_dict().items()}


def test_rebuilt_without_the_folder(clip_folder, no_network):
    images, tokens = torch.randn(1, 3, 48, 32), torch.tensor([[2, 9, 8, 3]])
    for cls, options, inputs in (
        (HFImageEncoder, {"dim": 8}, (images,)),
        (HFTextEncoder, {"vocab_size": 32, "pad_id": 0}, (tokens, tokens > 0)),
    ):
        spec = {"model_name": str(clip_folder), **options}
        built = cls(**spec).eval()
        with skip_pretrained():  # the folder's weights are not read
            assert not torch.equal(*(next(iter(m.parameters())) for m in (built, cls(**spec))))
        hidden = clip_folder.rename(clip_folder.parent / "gone")
        json.dumps(built.portable_config)
        with skip_pretrained():
            rebuilt = cls(**{**spec, **built.portable_config}).eval()
        hidden.rename(clip_folder)
        rebuilt.load_state_dict(built.state_dict())
        assert torch.equal(built(*inputs).pooled, rebuilt(*inputs).pooled)
        assert getattr(built, "image_mean", None) == getattr(rebuilt, "image_mean", None)
        assert str(clip_folder.parent) not in json.dumps(built.portable_config)


def test_frozen_stays_frozen():
    encoder = HFImageEncoder(model_name="vit", config={**VISION, "hidden_dropout_prob": 0.5}, trainable=False, dim=8)
    assert not any(module.training for module in encoder.train().model.modules())
    encoder(torch.randn(2, 3, 32, 32)).pooled.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == [
        "projection.weight",
        "projection.bias",
    ]
    text = HFTextEncoder(model_name="bert", config=TEXT, vocab_size=32, trainable=False).train()
    assert not text(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)).pooled.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": "vitt", "config": VISION}, "'vitt' is none. Did you mean 'vit'"),
        ({"model_name": "vit", "config": VISION, "pretrained": True}, "Leave one of them out"),
        ({"model_name": "bert", "config": TEXT}, "which takes no images"),
        ({"model_name": "vit", "config": {**VISION, "hidden_size": "wide"}}, "config of hf/vit is refused"),
        ({"model_name": "vit", "config": VISION, "dim": 0}, "at least 1; got 0"),
        ({"model_name": "vit_mae", "config": VISION, "pooling": "pooler"}, "ViTMAEModel has no pooling layer"),
        ({"model_name": "vit", "config": VISION, "image_mean": [0.5]}, "three numbers"),
        ({"model_name": "vit", "config": VISION, "feature_layer": 9}, r"number of a block, 1 to \d+ of hf/vit; got 9"),
    ],
)
def test_image_errors_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        HFImageEncoder(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": "vit", "config": VISION}, "which takes no tokens"),
        ({"model_name": "bert", "config": {**TEXT, "vocab_size": 9}}, "vocab_size 9, the tokenizer 32"),
        ({"model_name": "bert", "config": TEXT, "dim": -1}, "at least 1; got -1"),
        ({"model_name": "distilbert", "config": {}, "pooling": "pooler"}, "DistilBertModel has no pooling layer"),
    ],
)
def test_text_errors_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        HFTextEncoder(vocab_size=32, **options)


def test_too_long_a_text():
    encoder = HFTextEncoder(model_name="roberta", config=TEXT, vocab_size=32, pad_id=0)
    with pytest.raises(ValueError, match=r"40 tokens, but RobertaModel holds 39"):
        encoder(torch.ones(1, 40, dtype=torch.long), torch.ones(1, 40, dtype=torch.bool))


def test_a_tokenizer_that_does_not_belong_to_the_weights(clip_folder):
    with pytest.raises(ValueError, match=r"tokenizer has 5000 tokens, .* knows 32: they do not belong together"):
        HFTextEncoder(model_name=str(clip_folder), vocab_size=5000)


def test_weights_of_another_architecture(tmp_path, no_network):
    transformers.BertModel(transformers.BertConfig(**TEXT, vocab_size=32)).save_pretrained(tmp_path)
    other = transformers.RobertaConfig(**{**TEXT, "num_hidden_layers": 3}, vocab_size=32)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"do not fit RobertaModel: [0-9]+ missing"):
        HFTextEncoder(model_name=str(tmp_path), vocab_size=32)


def test_missing_folder_and_missing_model_fail_at_once(no_network, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder './nowhere'"):
        HFImageEncoder(model_name="./nowhere")
    with pytest.raises(OSError, match=r"not in the Hugging Face cache.*offline, or no such model"):
        HFImageEncoder(model_name="nobody-at-all/nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OSError, match="cannot be read as a transformers model"):
        HFImageEncoder(model_name=str(tmp_path))
    shutil.rmtree(tmp_path)
