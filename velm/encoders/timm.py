"""Any image model of timm as an image encoder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from velm.encoders.base import ImageEncoder, last_of_each_size, three_channels
from velm.errors import ConfigError, MissingPackageError
from velm.layers.depthwise import use_fast_gradients
from velm.layers.pooling import Pooling
from velm.outputs import EncoderOutput
from velm.pretrained.freezing import FrozenPartsInEval, trace_shapes
from velm.pretrained.weights import load_matching, pretrained_allowed, read_state_dict
from velm.util import did_you_mean


class TimmEncoder(FrozenPartsInEval, ImageEncoder):
    """A timm model up to its last feature map; pixels are normalised as the model expects it.

    Stages are timm's own coarse groups (stem, stages or blocks, last norm). Frozen ones stay in eval mode.

    Args:
        model_name: timm's name, such as 'vit_small_patch16_224' or 'resnet50.a1_in1k'; the part after 'timm/'.
        pretrained: download timm's weights (kept in the Hugging Face cache).
        weights: path of a state dict of this model (.pth, .safetensors) in place of a download.
        trainable: 'all', 'none', or how many stages, counted from the last, are trained.
        dim: width D of a linear projection of the features; null: no projection, the model's own width.
        pooling: 'mean', 'max' or 'attention' over the positions; 'class', the class token of those that have one; or
            'own', as the model does it before its classifier, such as SigLIP's attention head.
        global_pool: timm's option of that name, the pooling of the model's own head, such as 'avg', 'token' or 'map';
            null: the model's default. It also decides where some models have their last norm.
        drop_path: probability with which a residual branch is skipped in training (stochastic depth).
        image_mean: of the pixels' three channels, in [0, 1]; null: the model's own.
        image_std: likewise.
    """

    def __init__(
        self,
        *,
        model_name: str,
        pretrained: bool = False,
        weights: str | None = None,
        trainable: Literal["none", "all"] | int = "all",
        dim: int | None = None,
        pooling: Literal["mean", "max", "attention", "class", "own"] = "mean",
        global_pool: str | None = None,
        drop_path: float = 0.0,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        timm = import_timm()
        _check_name(timm, model_name)
        if dim is not None and dim < 1:
            raise ValueError(f"dim is the width of the projected features, at least 1; got {dim}.")
        options: dict[str, Any] = {} if global_pool is None else {"global_pool": global_pool}
        if drop_path:
            options["drop_path_rate"] = drop_path
        self.model = _create(timm, model_name, pretrained and weights is None and pretrained_allowed(), options)
        if weights is not None and pretrained_allowed():
            _load(self.model, Path(weights), model_name)
        use_fast_gradients(self.model)
        self.image_mean = three_channels(image_mean, self.model.pretrained_cfg["mean"])
        self.image_std = three_channels(image_std, self.model.pretrained_cfg["std"])
        self.prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        if pooling == "class" and self.prefix == 0:
            raise ValueError(f"timm/{model_name} has no class token; pooling is one of mean, max, attention.")
        self.own_pooling, self.patch_size = pooling == "own", _uneven_patch(self.model)
        self.is_cnn = False
        self._stage_of, width, self.is_cnn = _used(self.model, model_name, self._run)
        self.used_parameters = {f"model.{name}" for name in self._stage_of}
        self.dim = width if dim is None else dim
        self.projection = nn.Identity() if dim is None else nn.Linear(width, dim)
        self.pooling = None if pooling == "class" or pooling == "own" else Pooling(pooling, self.dim)
        self.portable_config: dict[str, Any] = {"pretrained": False, "weights": None}
        self._freeze(trainable)

    def forward(self, images: Tensor) -> EncoderOutput:
        raw, own = self._run(images)
        if raw.dim() == 3:
            grid = self._grid((images.shape[2], images.shape[3]), raw.shape[1] - self.prefix)
            positions = self.projection(raw)
            features = positions[:, self.prefix :]
        else:
            raw = raw.permute(0, 2, 3, 1) if self.is_cnn else raw
            grid = (raw.shape[1], raw.shape[2])
            features = positions = self.projection(raw.flatten(1, 2))
        if self.pooling is not None:
            pooled = self.pooling(features)
        else:
            pooled = positions[:, 0] if own is None else self.projection(own)
        return EncoderOutput(features, pooled, grid=grid)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps of timm's `features_only`, without the projection; of a model of one resolution the last one."""
        stages: list[dict[str, Any]] = list(getattr(self.model, "feature_info", None) or ())
        if len({stage["reduction"] for stage in stages}) < 2:
            return super().maps(images)
        images = self._whole_patches(images)
        if hasattr(self.model, "forward_intermediates"):
            return last_of_each_size(self.model.forward_intermediates(images, intermediates_only=True))
        found: dict[str, Tensor] = {}
        hooks = [
            self.model.get_submodule(stage["module"]).register_forward_hook(
                lambda _module, _inputs, output, name=stage["module"]: found.__setitem__(name, output)
            )
            for stage in stages
        ]
        try:
            self.model.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return last_of_each_size(found[stage["module"]] for stage in stages)

    def _whole_patches(self, images: Tensor) -> Tensor:
        if self.patch_size is None:
            return images
        height, width = (side // self.patch_size * self.patch_size for side in images.shape[2:])
        return images[:, :, :height, :width]

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last feature map, and with pooling 'own' the vector (B, width) that the classifier would read."""
        images = self._whole_patches(images)
        if self.is_cnn:
            images = images.contiguous(memory_format=torch.channels_last)
        raw = self.model.forward_features(images)
        return raw, self.model.forward_head(raw, pre_logits=True) if self.own_pooling else None

    def _grid(self, size: tuple[int, int], count: int) -> tuple[int, int]:
        """The grid of `count` tokens of an image of `size` (H, W) pixels."""
        embed: Any = getattr(self.model, "patch_embed", None)
        if hasattr(embed, "dynamic_feat_size"):
            rows, columns = embed.dynamic_feat_size(size)
            if rows * columns == count:
                return rows, columns
        rows = round((count * size[0] / size[1]) ** 0.5)
        if rows < 1 or count % rows != 0:
            raise ConfigError(
                f"{type(self.model).__name__} makes {count} tokens of {size[0]} x {size[1]} pixels, which lie on no "
                f"grid of that shape; choose square images or another model."
            )
        return rows, count // rows

    def _freeze(self, trainable: str | int) -> None:
        order = sorted(set(self._stage_of.values()))
        count = {"none": 0, "all": len(order)}.get(trainable, -1) if isinstance(trainable, str) else trainable
        if not 0 <= count <= len(order):
            raise ValueError(
                f"trainable is 'none', 'all' or a number of stages from 0 to {len(order)} "
                f"for {type(self.model).__name__}; got {trainable!r}."
            )
        trained = set(order[len(order) - count :])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._stage_of.get(name) in trained)
        self.train(self.training)


def import_timm() -> Any:
    """timm.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as cause:
        raise MissingPackageError("timm/* needs timm, which is not installed: pip install 'velm[timm]'") from cause


def _check_name(timm: Any, model_name: str) -> None:
    if timm.is_model(model_name.removeprefix("hf_hub:")) or model_name.startswith(("hf_hub:", "hf-hub:")):
        return
    guess = did_you_mean(model_name, timm.list_models(), count=3)
    raise ValueError(f"timm {timm.__version__} has no model {model_name!r}.{guess} All names: timm.list_models().")


def _create(timm: Any, model_name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """The model without its classifier, taking images of any size where it can."""
    for sizes in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        try:
            return timm.create_model(model_name, pretrained=pretrained, num_classes=0, **options, **sizes)
        except TypeError:  # an argument this architecture does not have
            if not sizes:
                raise
        except OSError as cause:
            raise OSError(
                f"The weights of timm/{model_name} cannot be downloaded: {cause}. Without a network, fetch the file "
                f"elsewhere and give its path as weights, or set pretrained: false."
            ) from cause
    raise AssertionError("the last attempt returns or raises")


def _uneven_patch(model: Any) -> int | None:
    """The side of a patch if the model's own images are no multiple of it (SigLIP's 384 of 14): the rest is cut off."""
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = model.pretrained_cfg["input_size"][-1]
    return size[0] if isinstance(size, tuple) and size[0] == size[1] and side % size[0] else None


def _used(
    model: Any, model_name: str, run: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> tuple[dict[str, float], int, bool]:
    """The stage of each parameter that the output of `run` depends on, the width of the features, and whether they are
    a map with the channels first, as of a CNN."""
    from timm.models import group_parameters

    (raw, own), used = trace_shapes(model, run, (1, *model.pretrained_cfg["input_size"]))
    if not isinstance(raw, Tensor) or raw.dim() not in (3, 4):
        raise ValueError(f"timm/{model_name} makes no single feature map, so it cannot encode; choose another model.")
    groups: dict[str, float] = {}
    if hasattr(model, "group_matcher"):
        groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    is_cnn = raw.dim() == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW"
    width = raw.shape[1] if is_cnn else raw.shape[-1]
    if own is not None and own.shape[1:] != (width,):
        raise ValueError(
            f"timm/{model_name} pools to {tuple(own.shape[1:])} numbers, but its features have {width}; pooling 'own' "
            f"needs the same width. Choose mean, max or attention."
        )
    return {name: groups.get(name, 0) for name, _ in model.named_parameters() if name in used}, width, is_cnn


def _load(model: Any, path: Path, model_name: str) -> None:
    state = read_state_dict(path)
    heads = model.pretrained_cfg.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}
    load_matching(model, state, known=set(model.state_dict()), what=f"timm/{model_name}", source=str(path))
