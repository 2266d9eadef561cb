"""The nested sections of a config: `model.optimizer`, `model.validation`, `model.watch` and `data.augment`.

Imports nothing of VELM but its errors, so that helpers take a section without importing the task.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from velm.errors import ConfigError

__all__ = ["Augmentation", "OptimizerConfig", "ValidationConfig", "WatchConfig"]


@dataclass
class OptimizerConfig:
    """AdamW with warm-up and cosine decay.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled; parameters with fewer than two dimensions (norms, biases, scales) get none.
        betas: AdamW's moment decays.
        warmup: fraction of all optimizer steps over which the rate rises linearly from zero.
        min_lr: the rate at the last step, as a fraction of `lr`.
        lr_scale: factor on `lr` for a part, e.g. {image_encoder: 0.1}, or for a module inside one, which then has no
            other factor: {decoder: 0.05, decoder.projector: 1.0}.
        layer_decay: factor on the rate from a repeated block to the one below it, e.g. 0.75 (see
            `velm.training.fine_tuning.layer_decay`); a number is that of both encoders, a mapping names parts:
            {image_encoder: 0.75}. None: all layers of a part have one rate.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05
    min_lr: float = 0.0
    lr_scale: dict[str, float] = field(default_factory=dict)
    layer_decay: float | dict[str, float] | None = None

    def __post_init__(self) -> None:
        decay = self.layer_decay
        for part, value in (decay if isinstance(decay, dict) else {"": decay}).items():
            if value is not None and not 0 < value <= 1:
                option = f"model.optimizer.layer_decay{part and '.'}{part}"
                raise ConfigError(f"{option} is a factor from block to block, 0 < layer_decay <= 1; got {value}.")
        if not self.lr > 0:
            raise ConfigError(f"model.optimizer.lr must be positive; got {self.lr}.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"model.optimizer.warmup is a fraction of all steps, 0 <= warmup < 1; got {self.warmup}.")


@dataclass
class ValidationConfig:
    """How much a validation measures.

    Args:
        captions: number of images that are captioned, greedily, for BLEU, ROUGE-L, CIDEr-D.
        texts_per_image: captions of an image that enter the retrieval gallery; 0 for all of them.
        panel: number of images whose captions are logged as text and images.
        max_length: longest generated caption in tokens, eos included.
        tokenize: tokenization of captions, `velm.metrics.tokenization`; `metrics.tokenize` sets it.
        blind: also measure the captions of an image without content, as `blind/...` (see `velm.evaluation.blind`).
            None: with a decoder that reads the image as a prefix, as `llm/*`.
    """

    captions: int = 200
    texts_per_image: int = 0
    panel: int = 8
    max_length: int = 32
    tokenize: str = "auto"
    blind: bool | None = None


@dataclass
class WatchConfig:
    """How often the losses' gradients are compared, and the thresholds of the alarms.

    Args:
        every: compare the gradients in one of so many logged steps; 0 for never.
        chance: a contrastive loss above 1 - chance times that of a model without information is stuck; 0 for no alarm.
        effective_rank: validation embeddings have collapsed when their effective rank r has (r - 1) below this
            fraction of the largest possible; 0 for no alarm.
        distinct: validation captions have collapsed when their fraction of distinct ones is below this fraction of
            the references'; 0 for no alarm.
        blind: the decoder does not look at the image when, in two validations in a row, its loss is not lower by this
            fraction than without the image (`model.validation.blind`); 0 for no alarm.
    """

    every: int = 50
    chance: float = 0.02
    effective_rank: float = 0.02
    distinct: float = 0.05
    blind: float = 0.01

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"model.watch.every is a number of logged steps, 0 for never; got {self.every}.")
        for name in ("chance", "effective_rank", "distinct", "blind"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.watch.{name} is a fraction, 0 <= {name} < 1; got {getattr(self, name)}.")


@dataclass
class Augmentation:
    """Random changes to a training image.

    Args:
        crop_scale: smallest and largest fraction of the image's area that a random crop keeps; None for no crop.
        flip: mirror half the images. Leave it off where captions say left and right.
        color_jitter: strength of random brightness, contrast and saturation, as a fraction; 0 for none.
    """

    crop_scale: tuple[float, float] | None = None
    flip: bool = False
    color_jitter: float = 0.0
