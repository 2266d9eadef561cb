"""Small dual encoders and captioners of transformers with random weights, tokenizers and image processors, in folders.

Their vocabularies are built here; nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from foreign import SMALL, randomise, seeded

CHINESE = ["一只狗", "两只棕色的狗在绿草地上奔跑，很快", "it's 3 cats!", "雪" * 90]
"""Short, long, in Latin letters, and beyond the context."""
CAPTIONS = ["a dog", "two brown dogs run over the grass", "it's 3 cats!", "snow " * 30]
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
_WORDS = "a an the two brown dog dogs run over green grass snow it s ' ! , . 3 cat ##s on in of is and white red blue"


def bert_tokenizer(longest: int = 24, chinese: bool = False) -> Any:
    """`BertTokenizer` over a few words, or over the characters of `CHINESE`."""
    from transformers import BertTokenizer

    special = ["[PAD]", *(f"[unused{i}]" for i in range(3)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted(set("".join(CHINESE))) if chinese else _WORDS.split()
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*special, *words]))}
    return BertTokenizer(vocab=vocabulary, model_max_length=longest)


def xlmr_tokenizer(longest: int = 24) -> Any:
    """`XLMRobertaTokenizer` over letters and a few words: <s> 0, <pad> 1, </s> 2, <unk> 3."""
    from transformers import XLMRobertaTokenizer

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [chr(code) for code in range(33, 127)]
    words = [f"\u2581{word}" for word in ("a", "dog", "dogs", "two", "brown", "run", "over", "the", "snow")]
    pieces += [(piece, -3.0) for piece in words] + [(letter, -9.0) for letter in letters]
    return XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)], model_max_length=longest)


def gpt2_tokenizer(longest: int = 24) -> Any:
    """GPT-2's tokenizer over bytes, with a few merges: <|endoftext|> is bos, eos, unk and pad."""
    from tokenizers import pre_tokenizers
    from transformers import GPT2Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("d", "o"), ("do", "g"), ("Ġ", "a"), ("r", "u"), ("ru", "n"), ("Ġ", "dog")]
    tokens = [*letters, *(a + b for a, b in merges), "<|endoftext|>"]
    tokenizer = GPT2Tokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=longest)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_language_model(folder: Path) -> Path:
    """A small `LlamaForCausalLM` with a tokenizer over bytes that has a pad and an eos of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = gpt2_tokenizer(longest=256)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "bos_token": "<bos>"})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save(folder: Path, model: torch.nn.Module, tokenizer: Any, processor: Any) -> Path:
    """Write what a hub repository holds."""
    for each in (model, tokenizer, processor):
        each.save_pretrained(folder)
    return folder


def clip_processor(size: int = 32, cls: str = "CLIPImageProcessor") -> Any:
    import transformers

    crop = {"height": size, "width": size}
    return getattr(transformers, cls)(size={"shortest_edge": size}, crop_size=crop)


def square_processor(size: int = 32, cls: str = "ViTImageProcessor") -> Any:
    import transformers

    return getattr(transformers, cls)(size={"height": size, "width": size})


def save_chinese_clip(folder: Path, **changes: Any) -> Path:
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    tokenizer = bert_tokenizer(chinese=True)
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 40, "hidden_act": "gelu", **changes}
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    with seeded():
        model = randomise(ChineseCLIPModel(config))
    save(folder, model, tokenizer, square_processor())
    as_published = {
        "image_processor_type": "ChineseCLIPImageProcessor", "do_center_crop": False,
        "size": {"height": 32, "width": 32}, "do_normalize": True, "do_resize": True, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(as_published), encoding="utf-8")
    return folder


def save_altclip(folder: Path) -> Path:
    from transformers import AltCLIPConfig, AltCLIPModel

    tokenizer = xlmr_tokenizer()
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 40, "project_dim": 20}
    config = AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    with seeded():
        model = randomise(AltCLIPModel(config))
    return save(folder, model, tokenizer, clip_processor())


def save_metaclip(folder: Path) -> Path:
    from transformers import MetaClip2Config, MetaClip2Model

    tokenizer = xlmr_tokenizer(longest=20)
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 20, "eos_token_id": 2, "pad_token_id": 1}
    config = MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=24)
    with seeded():
        model = randomise(MetaClip2Model(config))
    return save(folder, model, tokenizer, clip_processor())


def save_vision_text(folder: Path, vision: str = "vit", text: str = "bert") -> Path:
    """A ViT or CLIP's image tower, and BERT or XLM-R, each with its pooling layer."""
    from transformers import CONFIG_MAPPING, AutoConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    assert vision in CONFIG_MAPPING
    tokenizer = bert_tokenizer() if text == "bert" else xlmr_tokenizer()
    texts = AutoConfig.for_model(
        text, **SMALL, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=tokenizer.pad_token_id
    )
    images = AutoConfig.for_model(vision, **VISION)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(images, texts, projection_dim=24)
    with seeded():
        model = randomise(VisionTextDualEncoderModel(config))
    return save(folder, model, tokenizer, square_processor())


def imported_gradients(model: Any, folder: Path, to: Path) -> dict[str, torch.Tensor]:
    """The gradients of a model of transformers by VELM's names: an import renames and cuts weights, and so gradients.

    The model gets its weights back.
    """
    from velm.sources import open_source

    shutil.copytree(folder, to)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(to)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
    return open_source(f"hf/{to}").weights


def ends(bias: torch.Tensor, eos: int, by: float = 1.0) -> None:
    """Make eos likely enough that captions end."""
    bias.data[eos] += by


def save_blip(folder: Path, **text: Any) -> Path:
    """BLIP with 2 more tokens than its tokenizer, the first of which, [DEC], begins a caption."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    tokenizer = bert_tokenizer()
    tokens = {"vocab_size": len(tokenizer) + 2, "bos_token_id": len(tokenizer), "eos_token_id": 2}
    tokens |= {"sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    texts = {**SMALL, **tokens, "max_position_embeddings": 40, "encoder_hidden_size": 48, **text}
    vision = {**VISION, "hidden_size": 48, "initializer_range": 0.02}
    with seeded():
        model = randomise(BlipForConditionalGeneration(BlipConfig(text_config=texts, vision_config=vision)))
    ends(model.text_decoder.cls.predictions.decoder.bias, tokenizer.sep_token_id)
    return save(folder, model, tokenizer, square_processor(cls="BlipImageProcessor"))


def save_encoder_decoder(folder: Path, decoder: str = "gpt2", width: int = 48) -> Path:
    """A ViT of `width` and GPT-2, whose tokenizer has one special token, or BERT."""
    from transformers import AutoConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    if decoder == "gpt2":
        tokenizer, sizes = gpt2_tokenizer(), {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
    else:
        tokenizer, sizes = bert_tokenizer(), {**SMALL, "max_position_embeddings": 40}
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    texts = AutoConfig.for_model(decoder, **sizes, **ids, is_decoder=True, add_cross_attention=True)
    images = AutoConfig.for_model("vit", **{**VISION, "hidden_size": width})
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(images, texts)
    config.decoder_start_token_id = tokenizer.eos_token_id if decoder == "gpt2" else tokenizer.cls_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id if decoder == "gpt2" else tokenizer.sep_token_id
    with seeded():
        model = randomise(VisionEncoderDecoderModel(config))
    if decoder == "gpt2":  # its output has no bias: eos becomes likelier from position to position
        body, eos = model.decoder.transformer, model.decoder.lm_head.weight.data[tokenizer.eos_token_id]
        body.wpe.weight.data += 1.5 * torch.arange(len(body.wpe.weight))[:, None] * eos
    else:
        ends(model.decoder.cls.predictions.decoder.bias, tokenizer.sep_token_id, 1.6)
    return save(folder, model, tokenizer, square_processor())


def save_git(folder: Path, **changes: Any) -> Path:
    from transformers import GitConfig, GitForCausalLM

    tokenizer = bert_tokenizer()
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.cls_token_id, "pad_token_id": 0}
    tokens["eos_token_id"] = tokenizer.sep_token_id
    config = GitConfig(**{**SMALL, **tokens, "max_position_embeddings": 40, "vision_config": VISION, **changes})
    config.vision_config.hidden_size = 48
    with seeded():
        model = randomise(GitForCausalLM(config))
    ends(model.output.bias, tokenizer.sep_token_id)
    return save(folder, model, tokenizer, clip_processor())


def require_close(what: str, *pairs: tuple[torch.Tensor, torch.Tensor], atol: float = 1e-5) -> None:
    """Equal to `atol`; prints the largest difference, which docs/pretrained.md states (`pytest -rP`)."""
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=atol, msg=lambda said: f"{what}: {said}")
    print(f"largest difference of {what}: {max(float((a - b).abs().max()) for a, b in pairs):.0e}")


def require_gradients(original: Any, folder: Path, to: Path, model: torch.nn.Module) -> None:
    """Every gradient of VELM's model is that of the original.

    A class token is the sum of two weights of the original, and so has half of its imported gradient.
    """
    gradients = imported_gradients(original, folder, to)
    pairs = []
    for name, parameter in model.named_parameters():
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        pairs.append((ours, (0.5 if name == "image_encoder.class_token" else 1.0) * gradients[name]))
    require_close("gradients", *pairs)
