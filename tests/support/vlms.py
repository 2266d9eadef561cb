"""Small vision-language models of transformers with random weights, tokenizers and processors, in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from families import VISION, clip_processor, save, square_processor
from foreign import SMALL, randomise, seeded

PLACES = {"max_position_embeddings": 192}
GROUPED = {**SMALL, **PLACES, "num_key_value_heads": 2, "head_dim": 8}
LANGUAGES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 12},
    "gemma3_text": {**GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 192, "tie_word_embeddings": False},
    "gemma": GROUPED,
}
TOWERS = {
    "llama": ("clip_vision_model", "default"), "qwen2": ("siglip_vision_model", "full"),
    "qwen3": ("dinov2", "default"), "mistral": ("vit", "default"), "gemma3_text": ("clip_vision_model", "full"),
    "gpt2": ("clip_vision_model", "default"),
}  # fmt: skip
LLAVA_CHAT = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
IDEFICS_CHAT = (
    "<s>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}:{% else %}: "
    "{% endif %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
CHATS: dict[str, str | None] = {
    "llama": LLAVA_CHAT, "qwen2": LLAVA_CHAT, "qwen3": LLAVA_CHAT, "mistral": LLAVA_CHAT,
    "gemma3_text": "{{ bos_token }}" + LLAVA_CHAT,
    "gpt2": None,
}  # fmt: skip


def language_tokenizer(*more: str, adds_bos: bool = True, eos: str = "</s>") -> Any:
    """Bytes with a few merges; <pad> 0, <s> 1, </s> 2, <unk> 3, <image> 4 and `more` are special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *more]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("d", "o"), ("do", "g"), ("Ġ", "a"), ("r", "u"), ("ru", "n"), ("Ġ", "dog"), ("Ċ", "Ċ")]
    tokens = {t: i for i, t in enumerate([*special, *letters, *(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokens["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token=eos, unk_token="<unk>",
        additional_special_tokens=["<image>", *more], padding_side="left",
    )  # fmt: skip


def lone_special_tokenizer() -> Any:
    """GPT-2's: one special token, and an image token that was added."""
    from families import gpt2_tokenizer

    tokenizer = gpt2_tokenizer(longest=1_000_000)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.padding_side = "left"
    return tokenizer


def ids_of(tokenizer: Any, kind: str) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    spare = 0 if kind == "gpt2" else 5  # rows beyond the tokenizer's, as a resized vocabulary has
    return {"vocab_size": len(tokenizer) + spare, **{name: getattr(tokenizer, name) for name in names}}


def save_llava(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    vision, select = TOWERS[kind]
    adds_bos = kind in ("llama", "mistral", "gemma3_text")
    tokenizer = lone_special_tokenizer() if kind == "gpt2" else language_tokenizer(adds_bos=adds_bos)
    text = AutoConfig.for_model(kind, **{**LANGUAGES[kind], **ids_of(tokenizer, kind)})
    tower = AutoConfig.for_model(vision, **{**VISION, "hidden_size": 48, "num_hidden_layers": 3})
    options = {
        "vision_feature_select_strategy": select,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }
    config = LlavaConfig(vision_config=tower, text_config=text, **{**options, **changes})
    with seeded():
        model = randomise(LlavaForConditionalGeneration(config))
    images = square_processor(cls="SiglipImageProcessor") if vision == "siglip_vision_model" else clip_processor()
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy=select,
        num_additional_image_tokens=int(vision != "siglip_vision_model"), chat_template=CHATS[kind],
    )  # fmt: skip
    images.save_pretrained(folder)
    return save(folder, model, tokenizer, processor)


def save_idefics3(folder: Path, cls: str = "Idefics3", side: int = 32, split: bool = False, **changes: Any) -> Path:
    import transformers

    tokenizer = language_tokenizer(
        "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", eos="<end_of_utterance>"
    )
    text = transformers.LlamaConfig(**{**GROUPED, **ids_of(tokenizer, "llama")})
    options = {"scale_factor": 2, "image_token_id": 4, **changes}
    vision = {**VISION, "hidden_size": 48, "image_size": side}
    config = getattr(transformers, f"{cls}Config")(vision_config=vision, text_config=text, **options)
    with seeded():
        model = randomise(getattr(transformers, f"{cls}ForConditionalGeneration")(config))
    tokenizer.chat_template = IDEFICS_CHAT
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side}, do_image_splitting=split
    )
    return save(folder, model, tokenizer, images)


def save_paligemma(folder: Path, **changes: Any) -> Path:
    from transformers import AutoConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

    images = square_processor(cls="SiglipImageProcessor")
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=language_tokenizer(adds_bos=False))
    tokenizer = processor.tokenizer
    kind = changes.pop("text", "gemma")
    text = AutoConfig.for_model(kind, **{**LANGUAGES["gemma"], **ids_of(tokenizer, "gemma")})
    vision = AutoConfig.for_model("siglip_vision_model", **{**VISION, "hidden_size": 48, "vision_use_head": False})
    options = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>"), "projection_dim": 32, **changes}
    config = PaliGemmaConfig(vision_config=vision, text_config=text, hidden_size=32, **options)
    with seeded():
        model = randomise(PaliGemmaForConditionalGeneration(config))
        for layer in model.model.language_model.layers:  # else a word, whose vector is large, is followed by itself
            layer.mlp.down_proj.weight.data *= 8
    images.save_pretrained(folder)
    return save(folder, model, tokenizer, processor)
