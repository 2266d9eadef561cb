"""Any classification model of torchvision as an image encoder: its feature map without the classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from velm.encoders.base import ImageEncoder, last_of_each_size
from velm.layers.depthwise import use_fast_gradients
from velm.layers.pooling import Pooling
from velm.outputs import EncoderOutput
from velm.pretrained.folding import FoldedCopy, may_fold
from velm.pretrained.freezing import trace_shapes
from velm.pretrained.weights import load_matching, pretrained_allowed, read_state_dict
from velm.util import did_you_mean

_HEADS = {"avgpool", "fc", "classifier", "head", "heads", "dropout", "flatten", "permute", "AuxLogits", "aux1", "aux2"}
_CONTAINERS = {"features", "layers", "trunk_output", "blocks", "encoder", "encoder.layers"}
_HALVES = (models.GoogLeNet, models.Inception3)  # trained on pixels in [-1, 1], not on ImageNet's mean and std


class TorchvisionEncoder(ImageEncoder):
    """A torchvision model up to its last feature map (or an earlier one), frozen, in part or not at all.

    Stages are the top-level steps that have parameters: the 19 blocks of MobileNetV2, the stem's parts and the four
    layers of a ResNet, the layers of a ViT. Frozen stages stay in eval mode (batch norm keeps its statistics) and
    build no graph; where nothing is trained, batch norm is folded into the convolutions, which halves the time.
    `trainable: none` keeps the projection (`dim`) and attention pooling trainable: they are not torchvision's.

    Args:
        model_name: torchvision's name, such as 'mobilenet_v2'; the part after 'torchvision/'.
        weights: path of a state dict of this model (.pth, read with weights_only; half precision is widened), or a
            name of torchvision's ('DEFAULT', 'IMAGENET1K_V1'), downloaded once; null: random weights.
        features: the step whose output is taken, such as 'layer3', 'features.13', 'layer3.2'; null: the last before
            the classifier.
        trainable: 'all', 'none', or how many stages, counted from the last, are trained.
        dim: width D of a linear projection of the feature map; null: no projection, the width of the map.
        pooling: 'mean', 'max' or 'attention' over the positions.
    """

    library_parts = ("trunk",)

    def __init__(
        self,
        *,
        model_name: str,
        weights: str | None = None,
        features: str | None = None,
        trainable: Literal["none", "all"] | int = "all",
        dim: int | None = None,
        pooling: Literal["mean", "max", "attention"] = "mean",
    ) -> None:
        super().__init__()
        _check_name(model_name)
        arguments: dict[str, Any] = {"weights": None}
        if model_name in ("googlenet", "inception_v3"):
            arguments |= {"init_weights": False, "transform_input": False}
        model = models.get_model(model_name, **arguments)
        known = set(model.state_dict())
        self.trunk = Trunk(model, features)
        if weights is not None:
            state = _read(weights, model_name)
            if state is not None:
                load_matching(self.trunk.model, state, known=known, what=f"torchvision/{model_name}", source=weights)
        self.trunk.freeze(trainable)
        width = self.trunk.width()
        if dim is not None and dim < 1:
            raise ValueError(f"dim is the width of the projected features, at least 1; got {dim}.")
        self.dim = width if dim is None else dim
        self.projection = nn.Identity() if dim is None else nn.Linear(width, dim)
        self.pooling = Pooling(pooling, self.dim)
        self.portable_config: dict[str, Any] = {"weights": None}
        if isinstance(model, _HALVES):
            self.image_mean = self.image_std = (0.5, 0.5, 0.5)

    def forward(self, images: Tensor) -> EncoderOutput:
        positions, grid = self.trunk(images)
        features = self.projection(positions)
        return EncoderOutput(features, self.pooling(features), grid=grid)

    def maps(self, images: Tensor) -> list[Tensor]:
        """A map of each stage of a CNN or Swin, torchvision's own, without the projection; of a ViT the last one."""
        return self.trunk.maps(images)


class Trunk(nn.Module):
    """The steps of a torchvision model up to a feature map, (B, 3, H, W) -> (B, N, D) and its grid.

    Later layers are dropped; the others keep their torchvision names.
    """

    def __init__(self, model: nn.Module, features: str | None) -> None:
        super().__init__()
        if isinstance(model, models.DenseNet):  # its last activation is a function call in `forward`
            model.features.add_module("relu5", nn.ReLU())
        use_fast_gradients(model)
        self.model = model
        self.steps = _cut(model, list(_steps(model)), features)
        _prune(model, set(self.steps))
        self.frozen = 0
        self._folded = FoldedCopy()
        if isinstance(model, models.VisionTransformer):
            model.encoder.register_load_state_dict_pre_hook(_fit_positions)

    def stages(self) -> list[str]:
        """The steps that have parameters."""
        return [step for step in self.steps if any(True for _ in self.model.get_submodule(step).parameters())]

    def freeze(self, trainable: str | int) -> None:
        """Leave only the last `trainable` stages ('none', 'all' or a number) trained."""
        stages = self.stages()
        count = {"none": 0, "all": len(stages)}.get(trainable, trainable) if isinstance(trainable, str) else trainable
        if isinstance(count, str) or not 0 <= count <= len(stages):
            raise ValueError(
                f"trainable is 'none', 'all' or a number of stages from 0 to {len(stages)}; got {trainable!r}. "
                f"The stages: {', '.join(stages)}."
            )
        first = len(self.steps) if count == 0 else self.steps.index(stages[-count])
        self.frozen = 0 if count == len(stages) else first
        trained = {f"{step}." for step in self.steps[self.frozen :]}
        for name, parameter in self.model.named_parameters():
            inside = any(name.startswith(step) for step in trained)
            parameter.requires_grad_(inside or self.frozen == 0)
        self.train(self.training)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        self._folded.clear()
        for layer in self._layers()[: self.frozen]:
            layer.eval()
        return self

    def _layers(self) -> list[nn.Module]:
        return [self.model.get_submodule(step) for step in self.steps]

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if isinstance(self.model, models.VisionTransformer):
            return self._tokens(images)
        x = images.contiguous(memory_format=torch.channels_last)
        for layer in self._fast_layers(images):
            x = layer(x)
        if isinstance(self.model, models.SwinTransformer):  # (B, H', W', D), unlike all others
            return x.flatten(1, 2), (x.shape[1], x.shape[2])
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last output at each resolution, (B, C, H', W'); of a ViT its only one."""
        if isinstance(self.model, models.VisionTransformer):
            positions, grid = self._tokens(images)
            return [positions.transpose(1, 2).unflatten(2, grid)]
        x, outputs = images.contiguous(memory_format=torch.channels_last), []
        for layer in self._fast_layers(images):
            x = layer(x)
            outputs.append(x)
        if isinstance(self.model, models.SwinTransformer):
            outputs = [output.permute(0, 3, 1, 2) for output in outputs]
        return last_of_each_size(outputs)

    def _fast_layers(self, images: Tensor) -> list[nn.Module]:
        """The steps in order, with batch norm folded where nothing is trained."""
        layers = self._layers()
        learning = torch.is_grad_enabled() or self.training
        foldable = self.frozen if learning else len(layers)
        if images.device.type != "meta" and may_fold(layers[:foldable]):
            return [*self._folded.of(layers[:foldable]), *layers[foldable:]]
        return layers

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        model: Any = self.model
        patches = model.conv_proj(images)
        grid = (patches.shape[2], patches.shape[3])
        x = torch.cat([model.class_token.expand(images.shape[0], -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + _resized_positions(model.encoder.pos_embedding, grid)
        for layer in self._layers()[1:]:
            x = layer(x)
        return x[:, 1:], grid

    def width(self) -> int:
        """The width D of the feature map, found without computing anything."""
        (positions, _), _ = trace_shapes(self, self.forward, (1, 3, 224, 224))
        return positions.shape[-1]


def _check_name(model_name: str) -> None:
    names = models.list_models(module=models)
    if model_name not in names:
        guess = did_you_mean(model_name, names)
        raise ValueError(
            f"torchvision has no classification model {model_name!r}.{guess} Its models: {', '.join(names)}."
        )


def _read(weights: str, model_name: str) -> dict[str, Tensor] | None:
    """The state dict behind `weights`; None where pretrained weights are not to be touched."""
    if not pretrained_allowed():
        return None
    if Path(weights).is_file():
        return read_state_dict(Path(weights))
    offered = models.get_model_weights(model_name)
    if weights != "DEFAULT" and weights not in offered.__members__:
        raise ValueError(
            f"The weights {weights!r} of torchvision/{model_name} are neither a file (seen from {Path.cwd()}) nor one "
            f"of torchvision's: {', '.join(['DEFAULT', *offered.__members__])}."
        )
    try:
        return dict(offered[weights].get_state_dict(progress=False, check_hash=True))
    except OSError as cause:
        raise OSError(
            f"The weights {weights!r} of torchvision/{model_name} cannot be downloaded from "
            f"{offered[weights].url}: {cause}. Without a network, fetch the file elsewhere and give its path."
        ) from cause


def _steps(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """The steps of `model` in order, as dotted names, without its classifier."""
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if path in _CONTAINERS:
            yield from _steps(child, f"{path}.")
        elif path not in _HEADS and child is not None:
            yield path


def _cut(model: nn.Module, steps: list[str], features: str | None) -> list[str]:
    """The steps up to and with `features`; a step is opened where it is a plain sequence."""
    if features is None:
        return steps
    for index, step in enumerate(steps):
        if step == features:
            return steps[: index + 1]
        module = model.get_submodule(step)
        if features.startswith(f"{step}.") and type(module).forward is nn.Sequential.forward:
            inner = [f"{step}.{name}" for name, _ in module.named_children()]
            return _cut(model, steps[:index] + inner, features)
    guess = did_you_mean(features, steps)
    raise ValueError(
        f"{type(model).__name__} has no feature map {features!r} on its way to the classifier.{guess} "
        f"Feature maps: {', '.join(steps)} (and 'name.0', 'name.1', ... inside those that are sequences)."
    )


def _prune(module: nn.Module, kept: set[str], prefix: str = "") -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if any(step.startswith(f"{path}.") for step in kept):
            _prune(child, kept, f"{path}.")
        elif path not in kept:
            delattr(module, name)


def _resized_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Learned positions (1, 1 + n * n, D) of class token and square grid, resized bicubically to another grid."""
    side = math.isqrt(positions.shape[1] - 1)
    if grid == (side, side):
        return positions
    cells = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)


def _fit_positions(encoder: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Resize positions from weights made for images of another size."""
    stored = state.get(f"{prefix}pos_embedding")
    own = encoder.pos_embedding
    if stored is not None and stored.dim() == 3 and stored.shape[2] == own.shape[2] and stored.shape != own.shape:
        side = math.isqrt(own.shape[1] - 1)
        state[f"{prefix}pos_embedding"] = _resized_positions(stored.to(own.dtype), (side, side))
