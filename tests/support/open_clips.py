"""Small models of open_clip with random weights, and their embeddings, losses and gradients beside VELM's."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from foreign import randomise, seeded
from safetensors.torch import save_file
from torch import Tensor

from velm.checkpoint import build_from_checkpoint, build_tokenizer
from velm.data.batches.collate import pad_tokens
from velm.data.batches.lengths import truncate
from velm.losses.weighted import build_losses
from velm.model.build import needs_of
from velm.outputs import Batch
from velm.sources import describe_source, open_source

VIT: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
TEXTS = ["a dog", "two brown dogs run over the green grass, quickly", "it's a café & 3 cats!", "snow " * 90]


class Original:
    """A model of open_clip, and a folder of it as open_clip pushes one to the hub.

    Args:
        folder: to write.
        config: `model_cfg`.
        size: of the images in pixels; None: `image_size` of the config.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], size: int | None = None) -> None:
        import open_clip

        self.folder, self.config = folder, copy.deepcopy(dict(config))
        custom = self.config.get("custom_text") or "hf_model_name" in self.config["text_cfg"]
        classes = {(True, True): open_clip.CoCa, (True, False): open_clip.CustomTextCLIP}
        cls = classes.get((bool(custom), "multimodal_cfg" in self.config), open_clip.CLIP)
        options = {name: value for name, value in self.config.items() if name != "custom_text"}
        with seeded():
            built: Any = cls(**copy.deepcopy(options))
            if hasattr(built, "text_decoder"):
                torch.nn.init.normal_(built.text_decoder.text_projection, std=0.2)  # open_clip leaves memory as it was
            self.model = randomise(built)
        self.size = size or self.config["vision_cfg"]["image_size"]
        self.write(folder, self.model.state_dict())

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        preprocess = {"size": self.size, "mean": [0.48, 0.45, 0.41], "std": [0.27, 0.26, 0.28]}
        text = json.dumps({"model_cfg": self.config, "preprocess_cfg": preprocess})
        (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
        return folder

    def load(self) -> Imported:
        return Imported(f"open_clip/{self.folder}")

    def gradients(self, vocab_size: int) -> dict[str, Tensor]:
        """The gradients by their names in VELM: as linear as the weights, they take the same way.

        VELM adds the class token's position to it, so that both have the gradient of the sum; one of them is left out.
        """
        gradients = {name: torch.zeros_like(tensor) for name, tensor in self.model.state_dict().items()}
        summands = ("visual.class_embedding", "text.cls_emb")
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and name not in summands:
                gradients[name] = parameter.grad
        source = f"open_clip/{self.write(self.folder / 'gradients', gradients)}"
        weights = describe_source(source).read_weights(vocab_size)
        return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


class Imported:
    """What VELM makes of a source."""

    def __init__(self, source: str) -> None:
        self.checkpoint = open_source(source)
        self.model, self.tokenizer = build_from_checkpoint(self.checkpoint), build_tokenizer(self.checkpoint)

    def tokens(self) -> tuple[Tensor, Tensor]:
        ids = [truncate(self.tokenizer.encode(text), self.checkpoint.max_length) for text in TEXTS]
        return pad_tokens(ids, self.tokenizer.pad_id)

    def embeds(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images and of `TEXTS`, without a graph."""
        with torch.no_grad():
            image, text = self.model.encode_image(images), self.model.encode_text(*self.tokens())
            return self.model.embed_image(image), self.model.embed_text(text)

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """The losses for images and `TEXTS`; fills in the gradients of their weighted sum."""
        config = self.checkpoint.config["losses"]
        losses = build_losses(config)
        losses.load_state_dict(self.checkpoint.loss_weights)
        batch = Batch(images, *self.tokens(), torch.arange(len(TEXTS)))
        total, parts = losses(self.model(batch, needs_of(config)), batch)
        total.backward()
        return parts

    def largest_difference(self, theirs: Mapping[str, Tensor]) -> float:
        """The largest difference of two gradients of a parameter, relative to its largest element if that exceeds 1.

        open_clip's CoCa has no bias of the output.
        """
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        gradients.pop("decoder.output_projection.bias", None)
        assert gradients
        scales = {name: max(1.0, theirs[name].abs().max().item()) for name in gradients}
        return max((grad - theirs[name]).abs().max().item() / scales[name] for name, grad in gradients.items())


def pixels(size: int, count: int = len(TEXTS)) -> Tensor:
    """Normalised images."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens_of(original: Original) -> Tensor:
    """`TEXTS` as open_clip tokenizes and fills them."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = original.config["text_cfg"]
    length, name = text["context_length"], text.get("hf_tokenizer_name")
    return (SimpleTokenizer(context_length=length) if name is None else HFTokenizer(name, length))(TEXTS)


def save_words(folder: Path, template: str, specials: Sequence[str], pad: str = "<pad>") -> Any:
    """A tokenizer of transformers that cuts at blanks, in a folder; `template` says where special tokens stand.

    Args:
        template: of the `tokenizers` library, "<s> $A </s>".
        specials: the first ids; eos is </s>.
        pad: the token that texts are filled with.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in TEXTS for word in text.split()})
    ids = {token: number for number, token in enumerate([*specials, "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, ids[token]) for token in specials]
    )
    known = {"bos_token": "<s>"} if "<s>" in specials else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, eos_token="</s>", unk_token="<unk>", **known
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
