"""The towers of a model as modules of tensors, in the form in which they are exported."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from velm.encoders.rnn import RNNEncoder
from velm.model import VisionLanguageModel
from velm.outputs import EncoderOutput

__all__ = ["ImageTower", "TextTower", "tower_outputs", "with_parts"]


def tower_outputs(model: VisionLanguageModel, source: str, aligned: bool) -> list[str]:
    """What the tower of 'image' or 'text' gives: embeddings, what the decoder reads, or the pooled vector."""
    read = model.decoder is not None and source in model.memory_sources
    names = (["embeds"] if aligned else []) + (["features"] if read else [])
    return names or ["pooled"]


def with_parts(model: VisionLanguageModel, *parts: str) -> VisionLanguageModel:
    """The model without its other parts, whose weights torch.export would store, too; weights are shared."""
    twin = copy.copy(model)
    twin._modules = {name: part if name in parts else None for name, part in model._modules.items()}
    return twin


class ImageTower(nn.Module):
    """uint8 (B, 3, H, W) to the tensors `outputs`; normalisation inside."""

    def __init__(self, model: VisionLanguageModel, outputs: list[str]) -> None:
        super().__init__()
        self.model, self.outputs = with_parts(model, "image_encoder", "image_projection", "embed_dropout"), outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.to(self.model.image_scale.dtype) * self.model.image_scale + self.model.image_shift
        image = self.model.encode_image(pixels)
        return _chosen(image, self.model.embed_image(image) if "embeds" in self.outputs else None, self.outputs)


class TextTower(nn.Module):
    """Tokens int64 (B, T) and mask bool (B, T) to the tensors `outputs`; `rnn` is the form of a recurrent encoder."""

    def __init__(self, model: VisionLanguageModel, outputs: list[str], rnn: Callable[[RNNEncoder], nn.Module]) -> None:
        super().__init__()
        self.model, self.outputs = with_parts(model, "text_projection", "embed_dropout"), outputs
        encoder = model.text_encoder
        assert encoder is not None
        self.encoder: nn.Module = rnn(encoder) if isinstance(encoder, RNNEncoder) else encoder

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        text = self.encoder(tokens, mask)
        return _chosen(text, self.model.embed_text(text) if "embeds" in self.outputs else None, self.outputs)


def _chosen(output: EncoderOutput, embeds: Tensor | None, names: list[str]) -> tuple[Tensor, ...]:
    found = {"embeds": embeds, "features": output.features, "pooled": output.pooled}
    return tuple(tensor for name in names if (tensor := found[name]) is not None)
