"""Small models of transformers and open_clip with random weights, real tokenizers and image processors, in folders."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

TEXTS = ["a dog", "two brown dogs run over the green grass, quickly", "it's a café & 3 cats!", "snow " * 90]
"""Short, long, with punctuation and accents, and beyond the context of every model here."""
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def images(count: int = 3, size: tuple[int, int] = (70, 45)) -> list[Image.Image]:
    """Smooth random images, wider than high."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in small]


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """The global random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@cache
def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges, from the file in open_clip's package."""
    import open_clip.tokenizer as tokenizer

    with gzip.open(tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # OpenAI's names
    encoder = tokenizer.SimpleTokenizer().encoder
    return {special.get(token, token): number for token, number in encoder.items()}, merges


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocabulary, merges = bpe()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def randomise(model: torch.nn.Module) -> Any:
    """Weights far from zero everywhere, also in biases and norms, so that a wrong one shows."""
    for name, parameter in model.named_parameters():
        if "logit" not in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save_clip(folder: Path, eos: int = 49407, image_size: int = 32, **text: Any) -> Path:
    """A `CLIPModel` with its tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    config = CLIPConfig(
        text_config={**SMALL, "eos_token_id": eos, "bos_token_id": 49406, "projection_dim": 24, **text},
        vision_config={**SMALL, "image_size": image_size, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    if "hidden_act" in text:
        config.vision_config.hidden_act = text["hidden_act"]
    with seeded():
        randomise(CLIPModel(config)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=size).save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    """A `BertModel` with a tokenizer of letters and a few words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "image", "number", "noise", "dog", "red", "circle"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,'"]
    tokens = [*words, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    with seeded():
        model = randomise(BertModel(BertConfig(vocab_size=len(tokens), max_position_embeddings=64, **SMALL)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentencepiece_model(folder: Path) -> Path:
    """A unigram model with SigLIP's special tokens: pad and eos are both id 1."""
    import io

    import sentencepiece

    words = ("a", "an", "the", "two", "brown", "dog", "dogs", "run", "over", "green", "grass", "it's", "café", "snow")
    rng = np.random.default_rng(0)
    lines = (" ".join(rng.choice(words, 8)) for _ in range(300))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=80, model_type="unigram", pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, pad_piece="<pad>", character_coverage=1.0, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder / "spiece.model"


def save_siglip(folder: Path, image_size: int = 32, version: int = 1) -> Path:
    """A `SiglipModel` with the tokenizer of SigLIP 1 (SentencePiece, pad is eos) or 2 (lower-case BPE)."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipTokenizer

    if version == 1:
        tokenizer: Any = SiglipTokenizer(str(sentencepiece_model(folder)), model_max_length=16)
    else:
        tokenizer = siglip2_tokenizer()
    tokenizer.save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32, "pad_token_id": 1}
    config = SiglipConfig(
        text_config={**SMALL, **text}, vision_config={**SMALL, "image_size": image_size, "patch_size": 8}
    )
    with seeded():
        model = randomise(SiglipModel(config))
        model.logit_scale.data.fill_(4.77)  # 118, beyond the limit of 100 that CLIP's losses have
        model.logit_bias.data.fill_(-12.9)
        model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(folder)
    return folder


def siglip2_tokenizer() -> Any:
    """`Siglip2Tokenizer` over a vocabulary of letters and a few words; adds eos, as the template of SigLIP 2 does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [chr(code) for code in range(33, 127)] + ["\u2581", "é"]
    pairs = [("d", "o"), ("do", "g"), ("\u2581", "a"), ("r", "u"), ("ru", "n")]
    tokens = dict.fromkeys(
        [*special, *letters, *(a + b for a, b in pairs), *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    tokenizer = Siglip2Tokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs, model_max_length=16)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.padding_side = "right"
    return tokenizer


def save_open_clip(folder: Path, *, text: dict[str, Any] | None = None, **model: Any) -> tuple[Path, Any]:
    """open_clip's CLIP (or, with `custom_text`, CustomTextCLIP) as pushed to the hub, and the model itself."""
    import json

    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2, **(text or {})},
        **model,
    }
    custom = config.get("custom_text", False)
    cls = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    options = {name: value for name, value in config.items() if name != "custom_text"}
    with seeded():
        built = randomise(cls(**options))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in built.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    preprocess = {"mean": [0.48, 0.45, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic",
                  "resize_mode": "shortest"}  # fmt: skip
    text_ = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text_, encoding="utf-8")
    return folder, built


class Original:
    """A model of transformers with its tokenizer, as its documentation says to use them."""

    def __init__(self, folder: Any) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.model = AutoModel.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "right"  # Siglip2Tokenizer's default is left, its checkpoints say right

    def ids(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """SigLIP has no attention mask."""
        length = self.model.config.text_config.max_position_embeddings
        out = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        masked = self.model.config.model_type == "clip"
        return {"input_ids": out.input_ids, **({"attention_mask": out.attention_mask} if masked else {})}

    def __call__(self, texts: list[str], pixels: torch.Tensor, **options: Any) -> Any:
        return self.model(**self.ids(texts), pixel_values=pixels, **options)
